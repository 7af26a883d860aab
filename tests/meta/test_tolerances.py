"""The laws' tolerances are tight: what a correct decoder needs, and far below what a planted bug does."""

from __future__ import annotations

import pytest
import torch

from harness.judge._verdict import Broken
from harness.laws import Subject
from harness.laws._engine import fixed_cases
from harness.laws._law import FLOAT64, require_same
from harness.laws._masks import SEEN, UNSEEN
from harness.laws._oracle import run_over
from harness.speculative.sampler import build_decoder


def distances() -> list[float]:
    """Return how far the decoder's logits and f_hat are from a sequential run over its tokens, case by case."""
    found = []
    for case in [case.wide() for case in fixed_cases(30, seed=5)]:
        decoded = Subject(build_decoder).decode(case)
        run = run_over(case.models.target, case.models.vae, case, decoded.tokens_BL)
        assert decoded.intermediates is not None
        pairs = (
            (decoded.intermediates.rows_RLV, run.rows_RLV),
            (decoded.intermediates.x_RLD, run.x_RLD),
            (decoded.f_hat_BCPP, run.f_hat_SBCPP[-1]),
        )
        found.append(max(float((actual - expected).abs().max()) for actual, expected in pairs))
    return found


def test_rounding_in_float64_is_far_below_the_tolerance_and_not_zero():
    largest = max(distances())
    print(f"largest distance of 30 decodes: {largest:.2g}, tolerance {FLOAT64:g}")
    assert 0 < largest < FLOAT64 / 1000


def test_float32_would_not_pass_as_float64():
    exact = {"x": torch.tensor([1 / 3], dtype=torch.float64)}
    rounded = {"x": exact["x"].float().double()}
    with pytest.raises(Broken, match="1 of 1 differ"):
        require_same(rounded, exact, "", FLOAT64)


def test_what_a_row_sees_and_does_not_see_is_told_apart_by_a_factor():
    assert max(distances()) < UNSEEN < SEEN / 10
