"""How far rounding leads a `more_smooth` run: ties where there are some, runs led along a given f_hat."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.golden import spread as measuring
from harness.golden.cases import RecordedCase
from harness.golden.spread import (
    added,
    as_they_are,
    choices,
    guided,
    maps,
    nudged,
    raw_inputs,
    soft_ties,
    spread,
    temperature,
    tossed,
)
from harness.protocol.request import Request
from harness.reference.handoff import HandOff
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
REQUEST = Request((0, 1), 3, cfg=4.0, more_smooth=True)
CASES = {
    "sequential": RecordedCase("a", "sequential", REQUEST, MODELS),
    "draft": RecordedCase("b", "sequential", replace(REQUEST, top_k=4), MODELS, network="draft"),
    "hand-off": RecordedCase("c", "test3", replace(REQUEST, top_p=0.7), MODELS, hand_off=HandOff(1, 5)),
}
SMALL, LARGE = 1e-7, 1e-2


@pytest.mark.parametrize("name", CASES)
def test_a_run_led_along_its_own_f_hat_is_itself_and_along_another_is_not(name: str):
    case = CASES[name]
    run = case.run()
    f_hat_SBCPP = maps(run, steps=False)
    again = replace(case, models=nudged(MODELS, as_they_are, raw_inputs(f_hat_SBCPP, MODELS.pyramid))).run()
    assert torch.equal(guided(again), guided(run))
    assert torch.equal(again.f_hat_BCPP, run.f_hat_BCPP)
    assert raw_inputs(f_hat_SBCPP, MODELS.pyramid).keys() == {4, 9}  # scale 0 has no such input
    other = replace(case, models=nudged(MODELS, as_they_are, raw_inputs(f_hat_SBCPP + 1, MODELS.pyramid))).run()
    assert torch.equal(guided(other)[:, :1], guided(run)[:, :1])
    assert not torch.equal(guided(other)[:, 1:5], guided(run)[:, 1:5])


@pytest.mark.parametrize("name", CASES)
def test_more_rounding_leads_farther_and_repeats_exactly(name: str):
    near, far = (spread(CASES[name], error) for error in (SMALL, LARGE))
    for of_near, of_far in ((near.rms_BL, far.rms_BL), (near.peak_BL, far.peak_BL), (near.map_SBPP, far.map_SBPP)):
        assert bool((of_near > 0).all())
        assert float(of_far.mean()) > 1000 * float(of_near.mean())
    again = spread(CASES[name], SMALL)
    assert torch.equal(again.peak_BL, near.peak_BL)
    assert torch.equal(again.map_SBPP, near.map_SBPP)
    assert int(near.ties_BL.sum()) <= int(far.ties_BL.sum())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("error", [SMALL, LARGE])
def test_one_more_run_is_well_within_what_rounding_may_do_and_not_far_within(error: float, name: str):
    """Plant of a wide factor: the farthest run, times four, is some five times as far as another one."""
    case = CASES[name]
    found = spread(case, error)
    again = replace(case, models=nudged(MODELS, measuring._Rounding(error, seed=99))).run()
    moved_BL = (guided(again).double() - guided(found.exact)).square().mean(-1).sqrt()
    share_BL = found.rms_BL / moved_BL
    assert float(share_BL.min()) > 1.5
    assert 3 < float(share_BL.median()) < 10
    assert bool((found.peak_BL > found.rms_BL).all())


def test_where_a_soft_tie_leads_farther_than_rounding_it_is_how_far_that_may_lead(monkeypatch: pytest.MonkeyPatch):
    """Plant: ties that are tossed a thousand times as far, and none that are tossed."""
    case, error = CASES["sequential"], 1e-3
    monkeypatch.setattr(measuring, "tossed", lambda chosen, k: 1e3 * tossed(chosen, k))
    far = spread(case, error)
    assert bool(far.ties_BL.any())
    monkeypatch.setattr(measuring, "PAIRS", 0)
    near = spread(case, error)
    assert torch.equal(far.ties_BL, near.ties_BL)
    for of_far, of_near in ((far.rms_BL, near.rms_BL), (far.peak_BL, near.peak_BL), (far.map_SBPP, near.map_SBPP)):
        assert bool((of_far >= of_near).all())
        assert float((of_far / of_near).max()) > 10


def test_with_given_inputs_rounding_does_not_grow_from_scale_to_scale():
    case = CASES["sequential"]
    raw = raw_inputs(maps(case.run(), steps=False), MODELS.pyramid)
    free, led = spread(case, LARGE), spread(case, LARGE, raw)
    assert float(led.rms_BL[:, 5:].mean()) < float(free.rms_BL[:, 5:].mean())


def test_a_choice_within_the_budget_in_units_of_tau_is_a_tie_and_one_beyond_is_none():
    case = CASES["sequential"]
    guided_BLV = guided(case.exact())
    chosen = choices(case, guided_BLV)
    best_BL2 = chosen.best_BL2
    top_BL = chosen.score_BLV.gather(-1, best_BL2)
    apart_BL = (top_BL[..., 0] - top_BL[..., 1]) / chosen.factor_L  # in units of logits
    for factor, tied in ((1.01, True), (0.0, False)):
        reach_BLV = (factor * apart_BL)[..., None].expand(guided_BLV.shape)
        far_BL = apart_BL * chosen.factor_L > 1  # nearer ones are within what is never a tie for being that near
        assert bool((soft_ties(case, guided_BLV, chosen, reach_BLV)[far_BL] == tied).all())


@pytest.mark.parametrize("name", ["draft", "hand-off"])
def test_a_best_code_that_the_filter_may_drop_is_a_tie(name: str):
    case = CASES[name]
    guided_BLV = guided(case.exact())
    chosen = choices(case, guided_BLV)
    assert not bool(soft_ties(case, guided_BLV, chosen, torch.zeros_like(guided_BLV)).any())
    wide_BLV = torch.full_like(guided_BLV, 50.0).scatter(-1, chosen.best_BL2[..., :1], 0.0)
    assert bool(soft_ties(case, guided_BLV, chosen, wide_BLV).all())


def test_a_toss_moves_the_second_best_code_and_leaves_the_best():
    chosen = choices(CASES["sequential"], guided(CASES["sequential"].exact()))
    sign_BLV = tossed(chosen, 0)
    assert bool((sign_BLV.gather(-1, chosen.best_BL2) == torch.tensor((0.0, 1.0))).all())
    assert int((sign_BLV == 0).sum()) == chosen.best_BL2[..., 0].numel()


def test_logits_that_move_together_are_off_but_not_apart():
    """What a choice is turned by is how far codes move against each other."""
    case = CASES["sequential"]
    exact = case.exact()
    farthest = measuring._Farthest(exact, choices(case, guided(exact)), steps=False)
    farthest.add(replace(case, models=nudged(MODELS.wide(), lambda logits_RlV: logits_RlV + 1)).run())
    assert float(farthest.apart_BLV.max()) < 1e-9
    rms_BL, peak_BL, _ = farthest.farthest
    for off_BL in (rms_BL, peak_BL):
        torch.testing.assert_close(off_BL, torch.ones(2, 14, dtype=torch.float64))
    slope_V = 1e-3 * torch.arange(11, dtype=torch.float64)
    farthest.add(replace(case, models=nudged(MODELS.wide(), lambda logits_RlV: logits_RlV + slope_V)).run())
    apart_BV = (slope_V - slope_V[farthest.best_BL1[:, 0]]).abs()  # of scale 0, which no f_hat leads elsewhere
    torch.testing.assert_close(farthest.apart_BLV[:, 0], apart_BV)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nudge_is_of_the_size_of_rounding_and_shifts_both_rows_of_the_scales_that_it_names(dtype: torch.dtype):
    shift_BlV = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits_RlV = torch.zeros(4, 4, 11, dtype=dtype)
    shifted = measuring._Rounding(0.0, 0, {4: shift_BlV})
    assert torch.equal(shifted(logits_RlV), torch.cat((shift_BlV, shift_BlV)).to(dtype))
    assert torch.equal(shifted(logits_RlV[:, :1]), logits_RlV[:, :1])
    moved_RlV = measuring._Rounding(1e-3, 7)(logits_RlV)
    assert moved_RlV.dtype == dtype
    assert torch.equal(moved_RlV, measuring._Rounding(1e-3, 7)(logits_RlV))
    assert float(moved_RlV.square().mean().sqrt()) == pytest.approx(1e-3, rel=0.2)
    assert abs(float(moved_RlV.mean())) < 3e-4


def test_temperatures_are_those_of_the_specification():
    assert temperature(0.0) == pytest.approx(0.27)
    assert temperature(1.0) == pytest.approx(0.0135)
    assert temperature(1.1) == 0.005


def test_what_scales_add_sums_up_to_f_hat():
    f_hat_SBCPP = maps(CASES["sequential"].run(), steps=False)
    torch.testing.assert_close(added(f_hat_SBCPP).sum(0), f_hat_SBCPP[-1])
