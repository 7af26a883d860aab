"""Everything that belongs to one decode.

Promise: between rounds the state of an image equals that of a sequential run over its final scales. Drafting writes
only raw inputs and cache slots beyond the final scales; both are overwritten before they are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar, TypeVarTuple

import torch
from torch import Tensor

from harness.models.autoencoder import Autoencoder
from harness.models.network import Condition, Network
from harness.models.pair import ModelPair
from harness.protocol.noise import Noise
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request
from harness.protocol.trace import Intermediates, Round
from harness.speculative.cache import KVCache
from harness.speculative.launcher import Launcher

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def pick(tensor: Tensor, images: list[int]) -> Tensor:
    """Return the rows `images` of a per-image tensor; the tensor itself when that is all of them."""
    return tensor if images == list(range(len(tensor))) else tensor[images]


def place(images: list[int], B: int) -> list[int] | slice:
    """Return the index of the rows `images` of B: a slice when that is all of them, which costs the device no copy."""
    return slice(None) if images == list(range(B)) else images


@dataclass
class Side:
    """One network in one decode: its guidance rows' labels, its cache and what it was asked to compute."""

    name: str
    network: Network
    labels_R: Tensor
    launcher: Launcher
    cache: KVCache
    calls: list[int]
    rows: list[int]

    @classmethod
    def begin(cls, name: str, network: Network, labels_R: Tensor, launcher: Launcher) -> Side:
        """Return the side before its first pass."""
        B = len(labels_R) // 2
        return cls(name, network, labels_R, launcher, launcher.caches[name], [0] * B, [0] * B)

    @cached_property
    def condition(self) -> Condition:
        """All that depends on the labels, computed when it is first needed."""
        compute = partial(self.network.condition, self.labels_R)
        return self.launcher.run(("condition", self.name), compute, lasting=True)

    def condition_of(self, images: list[int]) -> Condition:
        """Return the condition of these images' guidance rows."""
        B = len(self.calls)
        if images == list(range(B)):
            return self.condition
        return self.condition.rows(torch.tensor(images + [B + b for b in images], device=self.network.device))


@dataclass
class DecodeState:
    """One decode in flight.

    Args:
        request: what is drawn.
        noise: the numbers.
        vae: quantiser.
        draft: the small network's side.
        target: the large network's side.
        launcher: how device work is done: launched, or recorded and replayed.
        done: number of final scales of every image.
        writes_BS: how often each scale was made final.
        rounds: of every image.
        draft_lens: what the draft length's rule keeps for every image.
        intermediates: named tensors of the final positions, or None when not kept.
        unchecked: (first scale, one number: are its logits finite?) of target passes that nobody waited for.

    The tensors are those of `Buffers`.
    """

    request: Request
    noise: Noise
    vae: Autoencoder
    draft: Side
    target: Side
    launcher: Launcher
    done: list[int]
    tokens_BL: Tensor
    raw_BLC: Tensor
    f_hat_BCPP: Tensor
    drafted_tokens_BL: Tensor
    drafted_probs_BLV: Tensor
    drafted_f_hat_BCPP: Tensor
    writes_BS: Tensor
    rounds: list[list[Round]]
    draft_lens: list[int]
    intermediates: Intermediates | None = field(repr=False, default=None)
    unchecked: list[tuple[int, Tensor]] = field(repr=False, default_factory=list)

    @property
    def pyramid(self) -> ScalePyramid:
        """Scales."""
        return self.target.network.pyramid

    @classmethod
    def begin(cls, models: ModelPair, request: Request, noise: Noise, launcher: Launcher, keep: bool) -> DecodeState:
        """Return the state before the first round; `keep` allocates the intermediates. Draws labels if none are given.

        Effects: the launcher's memory is this decode's from now on.
        """
        classes, B = models.target.config.classes, request.B
        labels_B = noise.labels(classes)
        noise, labels_R = launcher.begin(noise, torch.cat((labels_B, torch.full_like(labels_B, classes))))
        return cls(
            request=request,
            noise=noise,
            vae=models.vae,
            draft=Side.begin("draft", models.draft, labels_R, launcher),
            target=Side.begin("target", models.target, labels_R, launcher),
            launcher=launcher,
            done=[0] * B,
            **vars(launcher.buffers),
            writes_BS=torch.zeros(B, models.pyramid.S, dtype=torch.int64),
            rounds=[[] for _ in range(B)],
            draft_lens=[0] * B,
            intermediates=_empty_intermediates(models, B) if keep else None,
        )

    def run(self, images: list[int], key: tuple[Hashable, ...], work: Callable[[*Ts], T], *given: *Ts) -> T:
        """Do device work for these images: where that of a whole batch becomes a recording, or does not.

        Args:
            images: one group.
            key: what the work is, together with the request's filter and guidance; () where it must not be recorded.
            work: a function of the state's tensors, without a host synchronisation.
            given: its arguments; equal keys must mean equal ones.
        """
        if not key or len(images) < len(self.done):
            return work(*given)
        request = self.request
        return self.launcher.run((*key, request.cfg, request.top_k, request.top_p), partial(work, *given))


def _empty_intermediates(models: ModelPair, B: int) -> Intermediates:
    """NaN everywhere, so that what was never written cannot compare equal."""
    pyramid, config, dtype = models.pyramid, models.target.config, models.target.dtype
    logits, nan = torch.promote_types(dtype, torch.float32), partial(torch.full, fill_value=torch.nan)
    return Intermediates(
        x_RLD=nan((2 * B, pyramid.L, config.D), device=models.device, dtype=dtype),
        rows_RLV=nan((2 * B, pyramid.L, config.V), device=models.device, dtype=logits),
        guided_BLV=nan((B, pyramid.L, config.V), device=models.device, dtype=logits),
        f_hat_SBCPP=nan((pyramid.S, B, config.C, pyramid.P, pyramid.P), device=models.device, dtype=models.vae.dtype),
    )
