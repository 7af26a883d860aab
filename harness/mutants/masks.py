"""Planted bugs of masks: rows that see too much, too little, or in another shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.mutants._mutant import Mutant, parts
from harness.protocol.pyramid import ScalePyramid
from harness.speculative.parts import PARTS


def _mask(sees: Callable[[ScalePyramid, int, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Make a mask part of a rule (pyramid, K, row_n1, column_1K) -> bool_nK."""

    def attention_mask(
        pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        K, end = pyramid.begin(first), pyramid.end(last)
        row_n1 = torch.arange(K, end, device=device)[:, None]
        column_1K = torch.arange(end, device=device)[None]
        allowed_nK = sees(pyramid, K, row_n1, column_1K)
        mask_nK = torch.zeros(end - K, end, device=device, dtype=dtype)
        return mask_nK.masked_fill(~allowed_nK, float("-inf"))[None, None]

    return attention_mask


def _level(pyramid: ScalePyramid, position: Tensor) -> Tensor:
    return torch.tensor(pyramid.levels(), device=position.device)[position]


def _corner(pyramid: ScalePyramid, K: int, row_n1: Tensor, column_1K: Tensor) -> Tensor:
    return _level(pyramid, row_n1 - K) >= _level(pyramid, column_1K)


def _token_causal(pyramid: ScalePyramid, K: int, row_n1: Tensor, column_1K: Tensor) -> Tensor:
    return row_n1 >= column_1K


def _open_window(pyramid: ScalePyramid, K: int, row_n1: Tensor, column_1K: Tensor) -> Tensor:
    return torch.ones_like(row_n1 >= column_1K)


def _no_prefix(pyramid: ScalePyramid, K: int, row_n1: Tensor, column_1K: Tensor) -> Tensor:
    return (_level(pyramid, row_n1) >= _level(pyramid, column_1K)) & (column_1K >= K)


def _earlier_only(pyramid: ScalePyramid, K: int, row_n1: Tensor, column_1K: Tensor) -> Tensor:
    """Hide a row's own scale from it; the first row then sees nothing."""
    return _level(pyramid, row_n1) > _level(pyramid, column_1K)


def _cached_only(pyramid: ScalePyramid, K: int, row_n1: Tensor, column_1K: Tensor) -> Tensor:
    return (column_1K < K).expand(len(row_n1), -1)


def finite(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Write -10,000 for -inf: enough for most attention scores, a leak for the rest."""
    return PARTS.attention_mask(pyramid, first, last, device, dtype).clamp_min(-1e4)


def flat(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (n,K+n), which broadcasts where a kernel allows it."""
    return PARTS.attention_mask(pyramid, first, last, device, dtype)[0, 0]


def _long(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Let a late window's seventh scale and those after it see nothing that was cached."""
    mask = PARTS.attention_mask(pyramid, first, last, device, dtype).clone()
    if first and last >= first + 6:
        mask[:, :, pyramid.begin(first + 6) - pyramid.begin(first) :, : pyramid.begin(first)] = float("-inf")
    return mask


def _nine(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Open a late window of more than seven scales: its last but one sees its last."""
    mask = PARTS.attention_mask(pyramid, first, last, device, dtype).clone()
    if first and last >= first + 7:
        rows = slice(pyramid.begin(last - 1) - pyramid.begin(first), pyramid.begin(last) - pyramid.begin(first))
        mask[:, :, rows] = 0.0
    return mask


CORNER = Mutant("masks.corner", "the top-left _corner of the mask, whatever is cached",
    "the published mask sliced in both axes alike", parts(attention_mask=_mask(_corner)),
    component="mask")  # fmt: skip
TOKEN_CAUSAL = Mutant("masks.token-causal", "rows do not see later tokens of their own scale",
    "the causal mask of language models", parts(attention_mask=_mask(_token_causal)))  # fmt: skip
OPEN = Mutant("masks.open", "rows see the whole window, later scales too", "no mask, as in a pass over one scale",
    parts(attention_mask=_mask(_open_window)))  # fmt: skip
NO_PREFIX = Mutant("masks.no-prefix", "rows do not see what is cached", "the mask of a hand-off without its prefix",
    parts(attention_mask=_mask(_no_prefix)))  # fmt: skip
EARLIER_ONLY = Mutant("masks.earlier-only", "rows do not see their own scale", "> for >= between levels",
    parts(attention_mask=_mask(_earlier_only)))  # fmt: skip
CACHED_ONLY = Mutant("masks.cached-only", "rows see the cached scales alone",
    "a window's keys written after its attention", parts(attention_mask=_mask(_cached_only)))  # fmt: skip
FINITE = Mutant("masks.finite", "-10,000 in place of -inf", "a habit from half precision", parts(attention_mask=finite),
    alone=True)  # fmt: skip
FLAT = Mutant("masks.flat", "shape (n,K+n) in place of (1,1,n,K+n)", "a shape that only some kernels broadcast",
    parts(attention_mask=flat), alone=True)  # fmt: skip
LONG = Mutant("masks.long", "from a late window's seventh scale on rows do not see what is cached",
    "a mask made for six scales", parts(attention_mask=_long), component="mask or cache")  # fmt: skip
OPEN_END = Mutant("masks.open-end", "in a late window of eight scales the last but one sees the last",
    "a mask made for seven scales", parts(attention_mask=_nine), component="mask or cache")  # fmt: skip
