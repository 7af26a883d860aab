"""Guidance over a window of scales at once, and the split back into scales."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from harness.errors import InputError
from harness.protocol.pyramid import ScalePyramid


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

    Args:
        logits_RnV: 2B rows, conditional ones first; n positions of the window.
        pyramid: scales.
        cfg: guidance value.
        first: first scale of the window.
        last: last scale of the window.

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
    """Return views (B,l,…) of every scale first..last of a window's tensor (B,n,…)."""
    return list(window_BnX.split([pyramid.tokens(si) for si in range(first, last + 1)], 1))
