"""The steps of a decode that are the same in every family, pure functions over a window of scales: mask, filter, draw.

Promise: each states its contract, and depends on its arguments alone; `parts` composes the decoder of them. The file
of this name in `reference/` keeps the same contracts, one scale at a time.

Axes: B images, R = 2B guidance rows (conditional ones first), n positions or draws of scales first..last, l of one
scale, K cached positions before them, V values of a draw, D width, C, P of f_hat.
"""

from functools import lru_cache

import torch
from torch import Tensor

from harness.protocol.pyramid import ScalePyramid


@lru_cache(maxsize=256)  # a window's mask is read in every round; tensors are shared, so callers must not write
def attention_mask(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the additive mask (1,1,n,K+n), block-causal: n rows of scales first..last, K columns of those before.

    0 where a row sees, -inf elsewhere. Source: spec §5.
    """
    K, end = pyramid.begin(first), pyramid.end(last)
    mask_nK = torch.full((end - K, end), float("-inf"), device=device, dtype=dtype)
    for si in range(first, last + 1):
        mask_nK[pyramid.begin(si) - K : pyramid.end(si) - K, : pyramid.end(si)] = 0.0
    return mask_nK[None, None]


def split_logits_by_scale(window_BnX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> list[Tensor]:
    """Return views (B,l,…) of every scale first..last of a window's tensor (B,n,…) of draws, in order."""
    return list(window_BnX.split(pyramid.draws.counts[first : last + 1], 1))


def filter_logits(logits_BnV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the logits with dropped ones at -inf: top-k (ties with the k-th stay), then top-p. 0 = off."""
    if top_k:
        floor_Bn1 = logits_BnV.topk(top_k, sorted=True).values[..., -1:]
        logits_BnV = torch.where(logits_BnV >= floor_Bn1, logits_BnV, -torch.inf)
    if top_p:
        values_BnV, order_BnV = logits_BnV.sort(dim=-1)
        tail_BnV = values_BnV.softmax(-1).cumsum(-1) <= 1 - top_p
        tail_BnV[..., -1] = False
        dropped_BnV = torch.empty_like(tail_BnV).scatter_(-1, order_BnV, tail_BnV)
        logits_BnV = logits_BnV.masked_fill(dropped_BnV, -torch.inf)
    return logits_BnV


def draw(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
    """Return int64 tokens_Bn = argmax(probs/E) among tokens of positive probability, for any E in [0, inf]."""
    return torch.where(probs_BnV > 0, probs_BnV / E_BnV, -1.0).argmax(-1)
