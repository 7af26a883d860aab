"""Filter and draw over a window. Promise: pure functions; the token depends on the logits and `E` alone."""

from __future__ import annotations

import torch
from torch import Tensor


def filter_logits(logits_BnV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the logits with dropped ones at -inf: top-k (ties with the k-th stay), then top-p. 0 = off."""
    if top_k:
        floor_Bn1 = logits_BnV.topk(top_k, sorted=True).values[..., -1:]
        logits_BnV = torch.where(logits_BnV >= floor_Bn1, logits_BnV, -torch.inf)
    if top_p:
        values_BnV, order_BnV = logits_BnV.sort(dim=-1)
        tail_BnV = values_BnV.softmax(-1).cumsum(-1) <= 1 - top_p
        tail_BnV[..., -1] = False
        logits_BnV = logits_BnV.masked_fill(tail_BnV.gather(-1, order_BnV.argsort(-1)), -torch.inf)
    return logits_BnV


def draw(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
    """Return idx_Bn = argmax(probs/E) among tokens of positive probability, for any E in [0, inf]."""
    return torch.where(probs_BnV > 0, probs_BnV / E_BnV, -1.0).argmax(-1)
