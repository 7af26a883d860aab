"""What the decoder does with a network of VAR, a window of scales at a time: query, guidance, latent map.

Promise: each states its contract, and depends on its arguments alone; `parts` composes the decoder of them. The module
of this name in `reference/` keeps the same contracts, one scale at a time.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models.network import Condition, Network
from harness.models.var.quantizer import Quantizer
from harness.protocol import Request, ScalePyramid


def condition_rows(network: Network, request: Request, labels_B: Tensor) -> Condition:
    """Return the condition of the guidance rows, conditional ones first; device work."""
    return network.condition(torch.cat((labels_B, torch.full_like(labels_B, network.config.classes))))


def build_combined_query(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    """Return x_RnD of scales `first`..`last` in the network's dtype: inputs of several scales in one pass (spec §4).

    Row r sits at absolute position begin(first)+r, with that position's embeddings; both guidance halves get the same.
    `raw_BnC` are the raw inputs of positions begin(first)..end(last)-1; the one of position 0 is not used.
    """
    pyramid = network.pyramid
    lvl_pos_nD = torch.cat([network.lvl_SD[si] + network.pos_LD[pyramid.span(si)] for si in range(first, last + 1)])
    x_BnD = network.embed(raw_BnC) + lvl_pos_nD
    x_RnD = torch.cat((x_BnD, x_BnD))
    if first == 0:
        x_RnD[:, 0] = condition.cond_RD + network.start_1D + lvl_pos_nD[0]
    return x_RnD


def positions(network: Network, first: int, last: int) -> Tensor | None:
    """Return nothing: the query holds the position terms."""
    return None


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

    Raises `InputError` where the number of rows is odd.
    """
    R = logits_RnV.shape[0]
    if R % 2:
        raise InputError("guidance rows", R, "must be 2B: conditional, then unconditional", "pass both halves")
    conditional_BnV, unconditional_BnV = logits_RnV.chunk(2)
    one_plus_t_n1, t_n1 = _weights(pyramid, cfg, first, last, logits_RnV.device, logits_RnV.dtype)
    return one_plus_t_n1 * conditional_BnV - t_n1 * unconditional_BnV


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
