"""The tensors that a decode works on, apart from the KV caches.

Promise: allocated together, for one batch size; a decode that records its work keeps them for the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.models.pair import ModelPair


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
        made = cls(
            tokens_BL=torch.empty(B, L, dtype=torch.int64, device=device),
            raw_BLC=torch.empty(B, L, config.C, dtype=latent, device=device),
            f_hat_BCPP=torch.empty(B, config.C, P, P, dtype=latent, device=device),
            drafted_tokens_BL=torch.empty(B, L, dtype=torch.int64, device=device),
            drafted_probs_BLV=torch.empty(
                B, L, config.V, dtype=torch.promote_types(models.draft.dtype, torch.float32), device=device
            ),
            drafted_f_hat_BCPP=torch.empty(B, config.C, P, P, dtype=latent, device=device),
        )
        made.clear()
        return made

    def clear(self) -> None:
        """Make nothing final."""
        self.tokens_BL.fill_(-1)
        self.raw_BLC.zero_()
        self.f_hat_BCPP.zero_()
