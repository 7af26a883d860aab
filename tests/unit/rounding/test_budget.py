"""The error budget: stated before guidance, tight, and what it allows at a scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.judge._ties import margin_bound
from harness.judge._verdict import Verdict
from harness.mutants.guidance import SWAPPED
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import Allowance, Budget
from harness.rounding._measure import quick_budget
from tests.helpers import Layout, decoder_factory, digits, tiny, verified, verify_here, with_weight
from tests.unit.judge.test_race import raced

REQUEST = Request((3,), 0)


def test_the_budget_does_not_depend_on_the_decoder_under_test():
    models = tiny(Layout((1, 2, 3, 4)))
    request = Request((0, 1, 2), 0)
    right = verify_here(models, decoder_factory(), [Settings(2)], [request]).budget
    wrong = verify_here(models, SWAPPED, [Settings(2)], [request]).budget
    assert right == wrong


@pytest.mark.slow
def test_a_relative_change_of_1e_3_to_one_weight_exceeds_the_budget():
    models = digits()
    allowed = quick_budget(models).guided(REQUEST.cfg, 1.0)
    bent = with_weight(models.target, "blocks.2.attn.proj.weight", lambda weight: weight * 1.001)
    runs = []
    for network in (models.target, bent):
        noise = models.noise(REQUEST)
        forced_BL = runs[0].tokens_BL if runs else None
        runs.append(sample_sequential(network, models.vae, REQUEST, noise, forced_BL))
    delta = (runs[0].intermediates.guided_BLV - runs[1].intermediates.guided_BLV).abs().max()
    assert float(delta) > 10 * allowed.logits


def test_the_budget_is_a_small_multiple_of_float32():
    budget = quick_budget(digits())
    assert 0 < budget.rows_rms < budget.rows < 1e-3
    assert 0 < budget.f_hat < 1e-5


@pytest.mark.parametrize(("cfg", "ramp", "factor"), [(4.0, 0.0, 1), (1.5, 1.0, 4), (4.0, 0.5, 5), (-1.5, 1.0, 4)])
def test_guidance_multiplies_the_error_of_a_row_by_its_weight_at_the_scale(cfg: float, ramp: float, factor: float):
    allowed = Budget(0.5, 0.25, 0.125, "by hand").guided(cfg, ramp)
    assert allowed == Allowance(0.5 * factor, 0.25 * factor, 0.125, "by hand")


FEW = Allowance(1e-4, 1e-5, 1e-6, "by hand")


@pytest.mark.parametrize(
    ("logits", "token", "words", "tie"),
    [
        ([1.0, 1.0 - 1e-5, 0.0], 1, {}, True),  # within 2 budgets
        ([1.0, 1.0 - 1e-3, 0.0], 1, {}, False),
        ([1.0, 0.9, 0.0], 0, {}, True),  # the winner has a negative margin
        ([1.0, 0.0, -5.0], 2, {"top_k": 2}, False),  # filtered out for certain
        ([1.0, 0.5, 0.5 - 1e-5], 2, {"top_k": 2}, False),  # may survive, but loses to the first
        ([0.5 + 1e-5, 0.5, -9.0], 1, {"top_k": 1}, True),  # rounding decides who survives
    ],
)
def test_the_race_margin_tells_ties_from_defects(logits: list[float], token: int, words: dict, tie: bool):
    margin = raced(torch.tensor(logits), torch.ones(3), token, replace(REQUEST, **words), FEW.logits)
    assert (margin <= margin_bound(FEW.logits)) is tie


def test_a_filtered_token_loses_by_infinity():
    exact_V = torch.tensor([1.0, 0.0, -5.0])
    assert raced(exact_V, torch.ones(3), 2, replace(REQUEST, top_k=2), FEW.logits) == float("inf")
    assert raced(exact_V, torch.ones(3), 2, replace(REQUEST, top_p=0.5), FEW.logits) == float("inf")


def test_the_budget_sees_a_decoder_whose_target_is_slightly_wrong():
    models = tiny(Layout((1, 2, 3, 4)))
    bent = replace(models, target=with_weight(models.target, "head.weight", lambda weight: weight * 1.001))
    right = verified(models, Request((0,), 0))
    wrong = verify_here(models, lambda _, s: decoder_factory()(bent, s), [Settings(2)], [Request((0,), 0)])
    assert right.verdict is Verdict.IDENTICAL
    assert wrong.verdict is Verdict.DEFECT
