"""Planted bugs of masks: rows that see too much, too little, or in another shape."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.decoders import Factory
from harness.mutants._mutant import Alone, Mutant, parts, returned
from harness.protocol.pyramid import ScalePyramid

_INF = float("inf")


def _mask(sees: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Factory:
    """Plant a mask of a rule (level_L, row_n1, column_1K, number of cached positions) -> bool_nK."""

    def attention_mask(
        pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        K, end = pyramid.begin(first), pyramid.end(last)
        row_n1 = torch.arange(K, end, device=device)[:, None]
        column_1K = torch.arange(end, device=device)[None]
        allowed_nK = sees(torch.tensor(pyramid.levels(), device=device), row_n1, column_1K, K)
        return torch.where(allowed_nK, 0.0, -_INF).to(dtype)[None, None]

    return parts(attention_mask=attention_mask)


def late_rows(count: int, hidden: int | None = None) -> Factory:
    """Plant a mask whose rows do not see the first `hidden` cached positions (None = any) after `count` scales."""

    def changed(mask: Tensor, pyramid: ScalePyramid, first: int, last: int, *of_tensor: Any) -> Tensor:
        mask = mask.clone()
        if first and last >= first + count:
            begin = pyramid.begin(first)
            mask[:, :, pyramid.begin(first + count) - begin :, : hidden or begin] = -_INF
        return mask

    return returned(attention_mask=changed)


def _nine(mask: Tensor, pyramid: ScalePyramid, first: int, last: int, *of_tensor: Any) -> Tensor:
    mask = mask.clone()
    if first and last >= first + 7:
        rows = slice(pyramid.begin(last - 1) - pyramid.begin(first), pyramid.begin(last) - pyramid.begin(first))
        mask[:, :, rows] = 0.0
    return mask


# fmt: off
CORNER = Mutant("masks.corner", "the top-left corner of the mask, whatever is cached",
    "the published mask sliced in both axes alike",
    _mask(lambda level_L, row_n1, column_1K, K: level_L[row_n1 - K] >= level_L[column_1K]), component="mask")
TOKEN_CAUSAL = Mutant("masks.token-causal", "rows do not see later tokens of their own scale",
    "the causal mask of language models", _mask(lambda level_L, row_n1, column_1K, K: row_n1 >= column_1K))
OPEN = Mutant("masks.open", "rows see the whole window, later scales too", "no mask, as in a pass over one scale",
    returned(attention_mask=lambda mask, *window: torch.zeros_like(mask)))
NO_PREFIX = Mutant("masks.no-prefix", "rows do not see what is cached", "the mask of a hand-off without its prefix",
    _mask(lambda level_L, row_n1, column_1K, K: (level_L[row_n1] >= level_L[column_1K]) & (column_1K >= K)))
EARLIER_ONLY = Mutant("masks.earlier-only", "rows do not see their own scale", "> for >= between levels",
    _mask(lambda level_L, row_n1, column_1K, K: level_L[row_n1] > level_L[column_1K]))
CACHED_ONLY = Mutant("masks.cached-only", "rows see the cached scales alone",
    "a window's keys written after its attention",
    _mask(lambda level_L, row_n1, column_1K, K: (column_1K < K).expand(len(row_n1), -1)))
FINITE = Alone("masks.finite", "-10,000 in place of -inf", "a habit from half precision",
    returned(attention_mask=lambda mask, *window: mask.clamp_min(-1e4)))
FLAT = Alone("masks.flat", "shape (n,K+n) in place of (1,1,n,K+n)", "a shape that only some kernels broadcast",
    returned(attention_mask=lambda mask, *window: mask[0, 0]))
LONG = Mutant("masks.long", "from a late window's seventh scale on rows do not see what is cached",
    "a mask made for six scales", late_rows(6), component="mask")
OPEN_END = Mutant("masks.open-end", "in a late window of eight scales the last but one sees the last",
    "a mask made for seven scales", returned(attention_mask=_nine), component="mask")
