"""The state of a decode after one round, copied, and what it must equal.

Promise: every final part is compared, to the bit or within float64's rounding; what lies beyond the final scales is
nobody's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harness.laws.case import Case
from harness.laws.law import FLOAT64, NotOffered, require, require_same, require_tokens
from harness.laws.oracle import Run


@dataclass(frozen=True)
class Snapshot:
    """Copies of a decode's state after one round; caches as (lengths, kv) by side."""

    done: list[int]
    tokens_BL: Tensor
    raw_BLC: Tensor
    f_hat_BCPP: Tensor
    caches: dict[str, tuple[list[int], Tensor]]


def snapshot(state: Any) -> Snapshot:
    """Copy what the law looks at. Raises `NotOffered` where the state has other names."""
    try:
        caches = {
            side: (list(getattr(state, side).cache.lengths), getattr(state, side).cache.kv.clone())
            for side in ("draft", "target")
        }
        return Snapshot(
            list(state.done), state.tokens_BL.clone(), state.raw_BLC.clone(), state.f_hat_BCPP.clone(), caches
        )
    except AttributeError as error:
        raise NotOffered(f"state without {error.name}") from None


def check_snapshot(taken: Snapshot, case: Case, runs: dict[str, Run], tokens_BL: Tensor, where: str) -> None:
    """Raise `Broken` unless a state equals that of a sequential run over the final scales of `tokens_BL`.

    Args:
        taken: the state.
        case: whose pyramid.
        runs: of "draft" and "target" over tokens_BL.
        tokens_BL: of which the final scales are committed.
        where: for the message.
    """
    pyramid = case.pyramid
    for image, done in enumerate(taken.done):
        at, n = f"{where}, image {image}, {done} scales final", pyramid.begin(done)
        if done == 0:
            continue
        require_tokens(taken.tokens_BL[image : image + 1, :n], tokens_BL[image : image + 1, :n], at)
        f_hat = runs["target"].f_hat_SBCPP[done - 1, image]
        require_same({"f_hat": taken.f_hat_BCPP[image]}, {"f_hat": f_hat}, at, FLOAT64)
        known = slice(1, pyramid.end(min(done, pyramid.S - 1)))
        if known.stop > 1:
            raw_nC = runs["target"].raw_BLC[image, known]
            require_same({"next input": taken.raw_BLC[image, known]}, {"next input": raw_nC}, at, FLOAT64)
        for side, (lengths, kv) in taken.caches.items():
            _check_cache(kv, lengths[image], runs[side], image, n, f"{at}, {side} cache")


def _check_cache(kv: Tensor, length: int, run: Run, image: int, n: int, where: str) -> None:
    require(length <= n, f"{where} holds {length} positions, and only {n} are final")
    if length == 0:
        return
    B = kv.shape[2] // 2
    for layer, (k_RHLc, v_RHLc) in run.kv.items():
        rows = [image, B + image]
        actual = {"keys": kv[layer, 0, rows, :, :length], "values": kv[layer, 1, rows, :, :length]}
        expected = {"keys": k_RHLc[rows, :, :length], "values": v_RHLc[rows, :, :length]}
        require_same(actual, expected, f"{where}, layer {layer}", FLOAT64)
