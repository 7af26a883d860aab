"""Filter and draw as the spec page reads (§7). Promise: pure functions; randomness is the argument `E`."""

from __future__ import annotations

import torch
from torch import Tensor


def filter_logits(logits_BlV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the logits with the dropped ones at -inf: top-k first (ties stay), then top-p of what is left."""
    if top_k > 0:
        kth_Bl1 = logits_BlV.topk(top_k, dim=-1).values[..., -1:]
        logits_BlV = logits_BlV.masked_fill(logits_BlV < kth_Bl1, float("-inf"))
    if top_p > 0:
        ascending_BlV, order_BlV = logits_BlV.sort(dim=-1)
        drop_BlV = ascending_BlV.softmax(-1).cumsum(-1) <= 1 - top_p
        drop_BlV[..., -1] = False  # never the largest
        drop_BlV = torch.zeros_like(drop_BlV).scatter(-1, order_BlV, drop_BlV)
        logits_BlV = logits_BlV.masked_fill(drop_BlV, float("-inf"))
    return logits_BlV


def race(logits_BlV: Tensor, E_BlV: Tensor) -> Tensor:
    """Return the score of every token in the race, probs/E; a filtered token scores -1 whatever E is."""
    probs_BlV = logits_BlV.softmax(-1)
    return torch.where(probs_BlV > 0, probs_BlV / E_BlV, -1.0)


def draw(logits_BlV: Tensor, E_BlV: Tensor) -> Tensor:
    """Return idx_Bl, one categorical draw per position: argmax(probs / E)."""
    return race(logits_BlV, E_BlV).argmax(-1)


def smooth_codes(logits_BlV: Tensor, E_BlV: Tensor, codebook_VC: Tensor, ramp: float) -> Tensor:
    """Return the soft code vectors (B,l,C) of `more_smooth`.

    Args:
        logits_BlV: after guidance and after the filter.
        E_BlV: second exponential of the scale, E'.
        codebook_VC: code vectors.
        ramp: si/(S-1).
    """
    tau = max(0.27 * (1 - 0.95 * ramp), 0.005)
    G_BlV = -E_BlV.log()
    weights_BlV = ((logits_BlV * (1 + ramp) + G_BlV) / tau).softmax(-1)
    return weights_BlV @ codebook_VC
