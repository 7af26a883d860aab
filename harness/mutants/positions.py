"""Planted bugs of positions: rows that sit elsewhere than they should."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.decoders import Factory
from harness.models.network import Condition, Network
from harness.mutants._mutant import Alone, Mutant, parts, returned
from harness.protocol.pyramid import ScalePyramid


def _terms(network: Network, begin: int, n: int) -> Tensor:
    """Level and position embedding of n rows from position `begin` on."""
    levels_L = torch.tensor(network.pyramid.levels(), device=network.device)
    return network.lvl_SD[levels_L[begin : begin + n]] + network.pos_LD[begin : begin + n]


def query_levels(level: Callable[[int, int], int]) -> Factory:
    """Give a window's rows other levels than their scales': (scale, first scale of the window) -> level."""

    def moved(x_RnD: Tensor, network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
        levels_n = torch.tensor([si for si in network.pyramid.levels() if first <= si <= last])
        wrong_n = torch.tensor([level(si, first) for si in levels_n.tolist()])
        return x_RnD + (network.lvl_SD[wrong_n] - network.lvl_SD[levels_n])

    return returned(build_combined_query=moved)


def _offset(x_RnD: Tensor, network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    if first == 0:
        return x_RnD
    own_nD, wrong_nD = (_terms(network, network.pyramid.begin(si), raw_BnC.shape[1]) for si in (first, first - 1))
    return x_RnD - own_nD + wrong_nD


def _half(x_RnD: Tensor, network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    conditional_BnD, unconditional_BnD = x_RnD.chunk(2)
    terms_nD = _terms(network, network.pyramid.begin(first), raw_BnC.shape[1])
    return torch.cat((conditional_BnD, unconditional_BnD - terms_nD))


def _zero_leak(x_RnD: Tensor, network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    """Add the raw input of position 0, which has none; zero in a decode, whatever the buffer held elsewhere."""
    if first == 0:
        leak_BD = network.embed(raw_BnC[:, 0]) - network.embed(torch.zeros_like(raw_BnC[:, 0]))
        x_RnD[:, 0] += torch.cat((leak_BD, leak_BD))
    return x_RnD


def _backwards(window_BnX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Any:
    sizes = [pyramid.tokens(si) for si in range(first, last + 1)]
    cut = list(window_BnX.split(sizes[::-1], 1))[::-1]
    return [rows if rows.shape[1] == size else window_BnX[:, :size] for rows, size in zip(cut, sizes, strict=True)]


def _six_cut(scales: list[Tensor], window_BnX: Tensor, pyramid: ScalePyramid, first: int, last: int) -> Any:
    """Cut six scales off a window, and take what is left for one more: two, where there were eight."""
    if first and len(scales) > 7:
        scales[-1] = torch.cat(scales[-2:], 1)[:, : scales[-1].shape[1]]
    return scales


# fmt: off
OFFSET = Mutant("positions.offset", "windows after the first sit one scale earlier",
    "a window counted from what is cached instead of from the pyramid", returned(build_combined_query=_offset),
    component="positions")
FIRST_LEVEL = Mutant("positions.first-level", "all rows of a window get its first scale's level",
    "a level looked up once per pass, right while a pass was one scale", query_levels(lambda si, first: first))
HALF = Mutant("positions.half", "unconditional rows lack their position term",
    "the term added before the rows were doubled, to one half", returned(build_combined_query=_half))
ZERO_LEAKS = Alone("positions.zero-leaks", "position 0 also gets a raw input",
    "a buffer that happens to be zero, until it is reused", returned(build_combined_query=_zero_leak))
LAST_AXIS = Alone("positions.last-axis", "splits along the last axis but one", "an axis counted from the wrong end",
    parts(split_logits_by_scale=lambda window, pyramid, first, last: list(
        window.split(pyramid.draws.counts[first : last + 1], -2))))
BACKWARDS = Mutant("positions.backwards", "a window's rows are cut as if the fine scales came first",
    "scale sizes in the order of another loop", parts(split_logits_by_scale=_backwards))
SIX_LEVELS = Mutant("positions.six-levels", "from a late window's seventh scale on rows have the sixth's level",
    "a table of the usual size", query_levels(lambda si, first: min(si, first + 5) if first else si),
    component="positions")
SIX_CUT = Mutant("positions.six-cut", "the last scale of a late window of eight begins one scale early",
    "a loop of a fixed length", returned(split_logits_by_scale=_six_cut))
