"""The steps of a decode as pure functions over a window of scales: query, mask, guidance, draw, latent map.

Promise: each states its contract, and depends on its arguments alone; `parts` composes the decoder of them. The file
of this name in `reference/` keeps the same contracts, one scale at a time.

Axes: B images, R = 2B guidance rows (conditional ones first), n positions of scales first..last, l of one scale, K
cached positions before them, V tokens, D width, C, P of f_hat.
"""

from __future__ import annotations

from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models.network import Condition, Network
from harness.models.var.quantizer import Quantizer
from harness.protocol.pyramid import ScalePyramid


def build_combined_query(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    """Return x_RnD of scales `first`..`last` in the network's dtype: inputs of several scales in one pass (spec §4).

    Row r sits at absolute position begin(first)+r, with that position's embeddings; both guidance halves get the same.
    `raw_BnC` are the raw inputs of positions begin(first)..end(last)-1; the one of position 0 is not used.
    """
    pyramid = network.pyramid
    by_scale = [network.lvl_SD[si] + network.pos_LD[pyramid.span(si)] for si in range(first, last + 1)]
    lvl_pos_nD = torch.cat(by_scale)
    x_BnD = network.embed(raw_BnC) + lvl_pos_nD
    x_RnD = torch.cat((x_BnD, x_BnD))
    if first == 0:
        x_RnD[:, 0] = condition.cond_RD + network.start_1D + lvl_pos_nD[0]
    return x_RnD


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


@cache  # never emptied, since a recorded pass keeps the address; a few KiB an entry
def _weights(
    pyramid: ScalePyramid, cfg: float, first: int, last: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """1+t and t of every position of the window, (n,1) each, rounded from float64 once."""
    t = [cfg * pyramid.ramp(si) for si in range(first, last + 1) for _ in range(pyramid.tokens(si))]
    t_n1 = torch.tensor(t, dtype=torch.float64)[:, None]
    return (1 + t_n1).to(device, dtype), t_n1.to(device, dtype)


def guide(logits_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    """Return guided_BnV of scales first..last: (1+t)·conditional − t·unconditional, t = cfg·si/(S-1).

    Raises:
        InputError: the number of rows is odd.
    """
    R = logits_RnV.shape[0]
    if R % 2:
        raise InputError("guidance rows", R, "must be 2B: conditional, then unconditional", "pass both halves")
    conditional_BnV, unconditional_BnV = logits_RnV.chunk(2)
    one_plus_t_n1, t_n1 = _weights(pyramid, cfg, first, last, logits_RnV.device, logits_RnV.dtype)
    return one_plus_t_n1 * conditional_BnV - t_n1 * unconditional_BnV


def split_logits_by_scale(window_BnX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> list[Tensor]:
    """Return views (B,l,…) of every scale first..last of a window's tensor (B,n,…), in order."""
    return list(window_BnX.split([pyramid.tokens(si) for si in range(first, last + 1)], 1))


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
    """Return int64 tokens_Bn = argmax(probs/E) among tokens of positive probability, for any E in [0, inf]."""
    return torch.where(probs_BnV > 0, probs_BnV / E_BnV, -1.0).argmax(-1)


def accumulate(f_hat_BCPP: Tensor, idx_Bl: Tensor, si: int, quantizer: Quantizer, pyramid: ScalePyramid) -> Tensor:
    """Return f_hat after scale `si` with int64 tokens `idx_Bl`, a tensor of its own (spec §3)."""
    h_BCPP = quantizer.codes(idx_Bl, pyramid.patch_nums[si])
    if si != pyramid.S - 1:
        h_BCPP = F.interpolate(h_BCPP, (pyramid.P, pyramid.P), mode="bicubic")
    return f_hat_BCPP + quantizer.phi(h_BCPP, si, pyramid.S)


def next_input(f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    """Return raw_BlC, the raw input of scale `si`, from f_hat after the scales before it; a tensor of its own."""
    side = pyramid.patch_nums[si]
    return F.interpolate(f_hat_BCPP, (side, side), mode="area").flatten(2).mT
