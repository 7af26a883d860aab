"""What a recorded case may be off by: measured, and capped by a table of numbers with their reasons."""

from __future__ import annotations

import pytest
import torch

from harness.golden import _cases as allowance
from harness.golden._cases import LIMITS, RecordedCase, allowances
from harness.protocol._request import Request
from harness.rounding._budget import Budget
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
CASE = RecordedCase("a", "sequential", Request((0, 1), 3, cfg=4.0), MODELS)


@torch.inference_mode()
def test_the_measured_budget_is_what_allows_and_grows_with_the_guidance_of_the_scale():
    allowed = allowances(CASE, CASE.run())
    first, middle, last = allowed.logits_S
    assert middle == pytest.approx(5 * first)
    assert last == pytest.approx(9 * first)
    assert first == pytest.approx(allowance.quick_budget(MODELS).rows)
    assert allowed.image == LIMITS["image"]


@torch.inference_mode()
def test_a_plain_sampler_that_is_wrong_itself_is_capped(monkeypatch: pytest.MonkeyPatch):
    """Plant: errors as wide as those of a wrong mask."""
    monkeypatch.setattr(allowance, "quick_budget", lambda models: Budget(1.0, 1.0, 1.0, "by hand"))
    run = CASE.run()
    allowed = allowances(CASE, run)
    largest = float(run.intermediates.rows_RLV.abs().max())
    assert allowed.logits_S[0] == pytest.approx(LIMITS["logits cap"] * largest)
    most = max(1.0, float(run.intermediates.f_hat_SBCPP.abs().max()))
    assert allowed.f_hat == pytest.approx(2 * LIMITS["f_hat cap"] * most)


@torch.inference_mode()
def test_of_several_networks_the_one_that_rounds_most_is_what_allows(monkeypatch: pytest.MonkeyPatch):
    def by_network(models):
        return Budget(*((2e-6, 1e-7, 1e-7) if models.target is MODELS.draft else (1e-6, 1e-7, 1e-7)), "by hand")

    monkeypatch.setattr(allowance, "quick_budget", by_network)
    assert allowances(CASE, CASE.run()).logits_S[0] == 1e-6
    handed = RecordedCase("b", "test3", CASE.request, MODELS)
    assert allowances(handed, CASE.run()).logits_S[0] == 2e-6
