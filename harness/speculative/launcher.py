"""What a decode works on, and how its device work reaches the device.

Promise: the tensors are allocated together, for one batch size. The work is plain functions of them: launched kernel by
kernel here, recorded once and replayed in `tools.graphs`; the decoder does not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from harness.models.pair import ModelPair
from harness.protocol.noise import Noise
from harness.speculative.cache import KVCache
from harness.speculative.signatures import NewCache

T = TypeVar("T")


@dataclass
class Buffers:
    """What is final, and what the draft proposes behind it.

    Args:
        tokens_BL: final tokens; -1 where none is final yet.
        raw_BLC: raw inputs by position: those of scales 0..done are the final ones, later ones the draft's.
        f_hat_BCPP: latent map over the final scales.
        drafted_tokens_BL: proposed tokens; read only where this round wrote them.
        drafted_probs_BLV: the laws that they were drawn from; likewise.
        drafted_f_hat_BCPP: latent map over the final and the proposed scales; copied from f_hat in every round.
    """

    tokens_BL: Tensor
    raw_BLC: Tensor
    f_hat_BCPP: Tensor
    drafted_tokens_BL: Tensor
    drafted_probs_BLV: Tensor
    drafted_f_hat_BCPP: Tensor

    @classmethod
    def new(cls, models: ModelPair, B: int) -> Buffers:
        """Allocate for B images on the models' device."""
        config, L, P = models.target.config, models.pyramid.L, models.pyramid.P
        device, latent = models.device, models.vae.dtype
        law = torch.promote_types(models.draft.dtype, torch.float32)
        made = cls(
            tokens_BL=torch.empty(B, L, dtype=torch.int64, device=device),
            raw_BLC=torch.empty(B, L, config.C, dtype=latent, device=device),
            f_hat_BCPP=torch.empty(B, config.C, P, P, dtype=latent, device=device),
            drafted_tokens_BL=torch.empty(B, L, dtype=torch.int64, device=device),
            drafted_probs_BLV=torch.empty(B, L, config.V, dtype=law, device=device),
            drafted_f_hat_BCPP=torch.empty(B, config.C, P, P, dtype=latent, device=device),
        )
        made.clear()
        return made

    def clear(self) -> None:
        """Make nothing final."""
        self.tokens_BL.fill_(-1)
        self.raw_BLC.zero_()
        self.f_hat_BCPP.zero_()


class Launcher(Protocol):
    """The memory of a decode and its way to the device; one decode at a time."""

    buffers: Buffers
    caches: dict[str, KVCache]  # of "draft" and "target"

    def begin(self, noise: Noise, labels_R: Tensor) -> tuple[Noise, Tensor]:
        """Start a decode on empty buffers; return its numbers and labels where the work will read them."""
        ...

    def run(self, key: Hashable, compute: Callable[[], T], lasting: bool = False) -> T:
        """Do device work.

        Args:
            key: equal keys must mean equal work on equal buffers.
            compute: the work, without a host synchronisation.
            lasting: what it returns is read after other work has run; else it must be read before.
        """
        ...


class Eager:
    """Launch kernel by kernel, on memory of one decode's own."""

    def __init__(self, models: ModelPair, B: int, new_cache: NewCache) -> None:
        self.caches = {"draft": new_cache(models.draft, B), "target": new_cache(models.target, B)}
        self.buffers = Buffers.new(models, B)

    def begin(self, noise: Noise, labels_R: Tensor) -> tuple[Noise, Tensor]:
        """Return both as they are: everything is new and empty."""
        return noise, labels_R

    def run(self, key: Hashable, compute: Callable[[], T], lasting: bool = False) -> T:
        """Do the work."""
        return compute()
