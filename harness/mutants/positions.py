"""Planted bugs of positions: rows that sit elsewhere than they should."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.models.network import Condition, Network
from harness.mutants._mutant import Mutant, parts
from harness.protocol.pyramid import ScalePyramid
from harness.speculative.parts import PARTS


def _terms(network: Network, begin: int, n: int) -> Tensor:
    """Level and position embedding of n rows from position `begin` on."""
    levels_L = torch.tensor(network.pyramid.levels(), device=network.device)
    return network.lvl_SD[levels_L[begin : begin + n]] + network.pos_LD[begin : begin + n]


def _offset(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    x_RnD = PARTS.build_combined_query(network, condition, raw_BnC, first, last)
    if first == 0:
        return x_RnD
    pyramid, n = network.pyramid, raw_BnC.shape[1]
    own_nD, wrong_nD = (_terms(network, pyramid.begin(si), n) for si in (first, first - 1))
    return x_RnD - own_nD + wrong_nD


def _first_level(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    x_RnD = PARTS.build_combined_query(network, condition, raw_BnC, first, last)
    levels_n = torch.tensor(network.pyramid.levels(), device=network.device)
    levels_n = levels_n[network.pyramid.begin(first) : network.pyramid.end(last)]
    return x_RnD - network.lvl_SD[levels_n] + network.lvl_SD[first]


def _half(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    x_RnD = PARTS.build_combined_query(network, condition, raw_BnC, first, last)
    terms_nD = _terms(network, network.pyramid.begin(first), x_RnD.shape[1])
    return torch.cat((x_RnD[: len(x_RnD) // 2], x_RnD[len(x_RnD) // 2 :] - terms_nD))


def _zero_leaks(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    """Add the raw input of position 0, which has none; zero in a decode, whatever the buffer held elsewhere."""
    x_RnD = PARTS.build_combined_query(network, condition, raw_BnC, first, last)
    if first == 0:
        leak_BD = network.embed(raw_BnC[:, 0]) - network.embed(torch.zeros_like(raw_BnC[:, 0]))
        x_RnD[:, 0] += torch.cat((leak_BD, leak_BD))
    return x_RnD


def _last_axis(window: Tensor, pyramid: ScalePyramid, first: int, last: int) -> list[Tensor]:
    """Split along the last axis but one, which is the rows' axis of (B,n,V) alone."""
    return list(window.split([pyramid.tokens(si) for si in range(first, last + 1)], -2))


def _backwards(window_BnX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Any:
    sizes = [pyramid.tokens(si) for si in range(first, last + 1)]
    cut = list(window_BnX.split(sizes[::-1], 1))[::-1]
    return [rows if rows.shape[1] == size else window_BnX[:, :size] for rows, size in zip(cut, sizes, strict=True)]


def _six_levels(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    """Know six levels a window: scales after them have the level of the sixth."""
    x_RnD, pyramid = PARTS.build_combined_query(network, condition, raw_BnC, first, last).clone(), network.pyramid
    for si in range(first + 6, last + 1) if first else ():
        rows = slice(pyramid.begin(si) - pyramid.begin(first), pyramid.end(si) - pyramid.begin(first))
        x_RnD[:, rows] += network.lvl_SD[first + 5] - network.lvl_SD[si]
    return x_RnD


def _six_cut(window_BnX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> list[Tensor]:
    """Cut six scales off a window, and take what is left for one more: two, where there were eight."""
    scales = PARTS.split_logits_by_scale(window_BnX, pyramid, first, last)
    if first and len(scales) > 7:
        scales[-1] = torch.cat(scales[-2:], 1)[:, : scales[-1].shape[1]]
    return scales


OFFSET = Mutant("positions.offset", "windows after the first sit one scale earlier",
    "a window counted from what is cached instead of from the pyramid", parts(build_combined_query=_offset),
    component="positions")  # fmt: skip
FIRST_LEVEL = Mutant("positions.first-level", "all rows of a window get its first scale's level",
    "a level looked up once per pass, right while a pass was one scale",
    parts(build_combined_query=_first_level))  # fmt: skip
HALF = Mutant("positions.half", "unconditional rows lack their position term",
    "the term added before the rows were doubled, to one half", parts(build_combined_query=_half))  # fmt: skip
ZERO_LEAKS = Mutant("positions.zero-leaks", "position 0 also gets a raw input",
    "a buffer that happens to be zero, until it is reused", parts(build_combined_query=_zero_leaks),
    alone=True)  # fmt: skip
LAST_AXIS = Mutant("positions.last-axis", "splits along the last axis but one", "an axis counted from the wrong end",
    parts(split_logits_by_scale=_last_axis), alone=True)  # fmt: skip
BACKWARDS = Mutant("positions.backwards", "a window's rows are cut as if the fine scales came first",
    "scale sizes in the order of another loop", parts(split_logits_by_scale=_backwards))  # fmt: skip
SIX_LEVELS = Mutant("positions.six-levels", "from a late window's seventh scale on rows have the sixth's level",
    "a table of the usual size", parts(build_combined_query=_six_levels), component="positions")  # fmt: skip
SIX_CUT = Mutant("positions.six-cut", "the last scale of a late window of eight begins one scale early",
    "a loop of a fixed length", parts(split_logits_by_scale=_six_cut))  # fmt: skip
