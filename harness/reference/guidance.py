"""Classifier-free guidance as the spec page reads (§7). Promise: R = 2B rows in, B rows out, conditional half first."""

from __future__ import annotations

from torch import Tensor

from harness.errors import InputError


def guide(logits_RlV: Tensor, cfg: float, si: int, S: int) -> Tensor:
    """Return (1+t)·conditional − t·unconditional with t = cfg·si/(S-1); S = 1 gives t = 0.

    Args:
        logits_RlV: first half of the rows conditional, second half unconditional.
        cfg: guidance value.
        si: scale index.
        S: number of scales.

    Raises:
        InputError: the number of rows is odd.
    """
    R = logits_RlV.shape[0]
    if R % 2 != 0:
        raise InputError("guidance rows", R, "must be 2B: conditional, then unconditional", "pass both halves")
    B = R // 2
    t = cfg * si / (S - 1) if S > 1 else 0.0
    return (1 + t) * logits_RlV[:B] - t * logits_RlV[B:]
