"""The steps of sequential decoding: masks, filter and draw, the same in every family, and the table of families.

Promise: pure functions, one scale at a time; randomness is the argument `E`, and arguments are never written into. The
file of this name in `speculative/` keeps the same contracts, a window of scales at a time. A family is one row of
`FAMILIES`, and its functions one module here; nobody else asks which family it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.models import Condition, ModelPair, Network
from harness.protocol import Request, ScalePyramid
from harness.reference import _infinity as infinity
from harness.reference import _var as var

HAND_OFF_MASKS = range(6)  # sd_mask; 0 feeds no prefix and has no mask


def block_causal(pyramid: ScalePyramid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return mask_11LL (spec §5): 0 where level(i) >= level(j), so that i attends to j, -inf elsewhere."""
    level_L = torch.tensor(pyramid.levels(), device=device)
    return _additive(level_L[:, None] >= level_L[None, :], dtype)


def hand_off_mask(pyramid: ScalePyramid, entry: int, sd_mask: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return mask_11nn of the hand-off pass over positions 0..end(entry)-1 = n-1; 0 and -inf.

    The target's first scale is `entry`, 0..S-1. `sd_mask` is 1 "self"; 2 "self", but rows of the entry scale see all;
    3 block-causal; 4 "block"; 5 "block", but rows of the entry scale see all. Raises `InputError` for another one.

    Source: spec §5 and §8.
    """
    n = pyramid.end(entry)
    level_n = torch.tensor(pyramid.levels()[:n], device=device)
    position_n = torch.arange(n, device=device)
    same_nn = level_n[:, None] == level_n[None, :]
    if sd_mask in (1, 2):  # "self": any earlier position of another level, and the position itself
        earlier_nn = position_n[None, :] <= position_n[:, None]
        allowed_nn = (earlier_nn & ~same_nn) | (position_n[:, None] == position_n[None, :])
    elif sd_mask == 3:
        allowed_nn = level_n[:, None] >= level_n[None, :]
    elif sd_mask in (4, 5):  # "block": the position's own level
        allowed_nn = same_nn
    else:
        raise InputError("sd_mask", sd_mask, "must lie in 1..5 to have a mask", "pass sd_mask 3 for block-causal")
    if sd_mask in (2, 5):
        allowed_nn = allowed_nn | (level_n == entry)[:, None]
    return _additive(allowed_nn, dtype)


def _additive(allowed_nn: Tensor, dtype: torch.dtype) -> Tensor:
    mask_nn = torch.zeros(allowed_nn.shape, device=allowed_nn.device, dtype=dtype)
    return mask_nn.masked_fill(~allowed_nn, float("-inf"))[None, None]


def filter_logits(logits_BlV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the logits with the dropped ones at -inf: top-k first (ties stay), then top-p of the rest (spec §7)."""
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
    """Return idx_Bl, one categorical draw each: argmax(probs / E)."""
    return race(logits_BlV, E_BlV).argmax(-1)


Other = tuple[str, str, Network, Request]


@dataclass(frozen=True)
class FamilySteps:
    """One function a step; those of VAR state the contracts."""

    condition: Callable[[Network, Request, Tensor], Condition]  # of the guidance rows of images, by their labels_B
    input: Callable[[Network, Condition, Tensor | None, int], Tensor]  # x_RlD of a scale; no raw input at scale 0
    # where the rows of scales first..last sit, for `Network.hidden`; None where the input says it
    positions: Callable[[Network, int, int], Tensor | None]
    guide: Callable[[Tensor, Any, int, int], Tensor]  # guided_BlV of rows_RlV; (rows, `Request.guidance`, si, S)
    # f_hat after a scale; (f_hat, its codes, si, the codebook, scales)
    accumulate: Callable[[Tensor, Tensor, int, Any, ScalePyramid], Tensor]
    next_input: Callable[[Tensor, int, ScalePyramid], Tensor]  # raw_BlC of a scale, from f_hat before it
    resize: str  # how `next_input` resizes f_hat, a mode of `F.interpolate`
    example: Callable[[ModelPair, int, int], Request]  # (models, images, seed): what budgets are measured with
    # the codes of `Request.more_smooth`, (logits_BlV, E', code vectors, si/(S-1)), where the family reads it
    smooth_codes: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    # mistakes of the family's own, as (component, clause, network, request) in the place of right ones; (network,
    # request, label, the scale in question, of every scale the first one of its pass)
    others: Callable[[Network, Request, int, int, Sequence[int]], Iterator[Other]] | None = None


VAR = FamilySteps(
    var.condition, var.scale_input, var.positions, var.guide, var.accumulate, var.next_input, "area",
    var.example, var.smooth_codes,
)  # fmt: skip
INFINITY = FamilySteps(
    infinity.condition, infinity.scale_input, infinity.positions, infinity.guide, infinity.accumulate,
    infinity.next_input, "bilinear", infinity.example, others=infinity.others,
)  # fmt: skip
FAMILIES = {"var": VAR, "infinity": INFINITY}


def family_of(network: Network) -> FamilySteps:
    """Return what is done with a network. Raises `InputError` for a family that nobody wrote."""
    name = network.config.family
    if name not in FAMILIES:
        raise InputError("family", name, f"must be one of {', '.join(FAMILIES)}", "pass networks of one of these")
    return FAMILIES[name]
