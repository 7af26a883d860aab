"""How far rounding leads a `more_smooth` run: ties where there are some, runs led along a given f_hat."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.golden import _smooth as measuring
from harness.golden._cases import RecordedCase
from harness.golden._smooth import (
    LEAST,
    TOSSES,
    Choices,
    added,
    as_they_are,
    choices,
    maps,
    nudged,
    raw_inputs,
    soft_ties,
    spread,
    temperature,
    tossed,
)
from harness.protocol._request import Request
from harness.protocol.noise import SMOOTH
from harness.reference._handoff import HandOff
from harness.reference._steps import filter_logits
from harness.reference._var import smooth_codes
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
REQUEST = Request((0, 1), 3, cfg=4.0, more_smooth=True)
CASES = {
    "sequential": RecordedCase("a", "sequential", REQUEST, MODELS),
    "draft": RecordedCase("b", "sequential", replace(REQUEST, top_k=4), MODELS, network="draft"),
    "hand-off": RecordedCase("c", "test3", replace(REQUEST, top_p=0.7), MODELS, hand_off=HandOff(1, 5)),
}
SEQUENTIAL = CASES["sequential"]
SMALL, LARGE = 1e-7, 1e-2
FILTERS = ({"top_k": 4}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.7})


@pytest.mark.parametrize("name", CASES)
def test_a_run_led_along_its_own_f_hat_is_itself_and_along_another_is_not(name: str):
    case = CASES[name]
    run = case.run()
    f_hat_SBCPP = maps(run, steps=False)
    again = replace(case, models=nudged(MODELS, as_they_are, raw_inputs(f_hat_SBCPP, MODELS.pyramid))).run()
    assert torch.equal(again.shown.guided_BLV, run.shown.guided_BLV)
    assert torch.equal(again.f_hat_BCPP, run.f_hat_BCPP)
    assert raw_inputs(f_hat_SBCPP, MODELS.pyramid).keys() == {4, 9}  # scale 0 has no such input
    other = replace(case, models=nudged(MODELS, as_they_are, raw_inputs(f_hat_SBCPP + 1, MODELS.pyramid))).run()
    assert torch.equal(other.shown.guided_BLV[:, :1], run.shown.guided_BLV[:, :1])
    assert not torch.equal(other.shown.guided_BLV[:, 1:5], run.shown.guided_BLV[:, 1:5])


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
    again = replace(case, models=nudged(MODELS, measuring.rounding(error, seed=99))).run()
    moved_BL = (again.shown.guided_BLV.double() - found.exact.shown.guided_BLV).square().mean(-1).sqrt()
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
    guided_BLV = case.exact().shown.guided_BLV
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
    guided_BLV = case.exact().shown.guided_BLV
    chosen = choices(case, guided_BLV)
    assert not bool(soft_ties(case, guided_BLV, chosen, torch.zeros_like(guided_BLV)).any())
    wide_BLV = torch.full_like(guided_BLV, 50.0).scatter(-1, chosen.best_BL2[..., :1], 0.0)
    assert bool(soft_ties(case, guided_BLV, chosen, wide_BLV).all())


def test_a_toss_moves_the_second_best_code_and_leaves_the_best():
    chosen = choices(CASES["sequential"], CASES["sequential"].exact().shown.guided_BLV)
    sign_BLV = tossed(chosen, 0)
    assert bool((sign_BLV.gather(-1, chosen.best_BL2) == torch.tensor((0.0, 1.0))).all())
    assert int((sign_BLV == 0).sum()) == chosen.best_BL2[..., 0].numel()


def test_logits_that_move_together_are_off_but_not_apart():
    """What a choice is turned by is how far codes move against each other."""
    case = CASES["sequential"]
    exact = case.exact()
    farthest = measuring._Farthest(exact, choices(case, exact.shown.guided_BLV), steps=False)
    farthest.add(replace(case, models=nudged(MODELS.wide(), lambda logits_RlV: logits_RlV + 1)).run())
    assert float(farthest.apart_BLV.max()) < 1e-9
    for off_BL in (farthest.rms_BL, farthest.peak_BL):
        torch.testing.assert_close(off_BL, torch.ones(2, 14, dtype=torch.float64))
    slope_V = 1e-3 * torch.arange(11, dtype=torch.float64)
    farthest.add(replace(case, models=nudged(MODELS.wide(), lambda logits_RlV: logits_RlV + slope_V)).run())
    apart_BV = (slope_V - slope_V[farthest.best_BL1[:, 0]]).abs()  # of scale 0, which no f_hat leads elsewhere
    torch.testing.assert_close(farthest.apart_BLV[:, 0], apart_BV)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nudge_is_of_the_size_of_rounding_and_shifts_both_rows_of_a_scale(dtype: torch.dtype):
    shift_BlV = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits_RlV = torch.zeros(4, 4, 11, dtype=dtype)
    shifted = measuring.rounding(0.0, 0, {4: shift_BlV})
    assert torch.equal(shifted(logits_RlV), torch.cat((shift_BlV, shift_BlV)).to(dtype))
    moved_RlV = measuring.rounding(1e-3, 7)(logits_RlV)
    assert moved_RlV.dtype == dtype
    assert torch.equal(moved_RlV, measuring.rounding(1e-3, 7)(logits_RlV))
    assert float(moved_RlV.square().mean().sqrt()) == pytest.approx(1e-3, rel=0.2)
    assert abs(float(moved_RlV.mean())) < 3e-4


def test_temperatures_are_those_of_the_specification():
    assert temperature(0.0) == pytest.approx(0.27)
    assert temperature(1.0) == pytest.approx(0.0135)
    assert temperature(1.1) == 0.005


def test_what_scales_add_sums_up_to_f_hat():
    f_hat_SBCPP = maps(CASES["sequential"].run(), steps=False)
    torch.testing.assert_close(added(f_hat_SBCPP).sum(0), f_hat_SBCPP[-1])


# ---- soft choices, at the edges of what is a soft tie ----


def with_request(**words: object) -> RecordedCase:
    return replace(SEQUENTIAL, request=replace(REQUEST, **words))


@pytest.mark.parametrize("words", [{}, *FILTERS, {"labels": None, "count": 2, "order": "batch"}])
def test_choices_are_those_of_the_sampler(words: dict[str, object]):
    """Weights of a codebook of unit vectors are the mixture itself."""
    case = with_request(**words)
    guided_BLV = case.exact().shown.guided_BLV
    chosen, noise = choices(case, guided_BLV), MODELS.noise(case.request)
    noise.labels(MODELS.target.config.classes)
    filtered_BLV = filter_logits(guided_BLV, case.request.top_k, case.request.top_p)
    mixture_BLV = chosen.score_BLV.masked_fill(~chosen.kept_BLV, -torch.inf).softmax(-1)
    for si in MODELS.pyramid:
        span = MODELS.pyramid.span(si)
        E_BlV = noise.exponential(si, SMOOTH, "test").double()
        unit_VV = torch.eye(11, dtype=torch.float64)
        expected_BlV = smooth_codes(filtered_BLV[:, span], E_BlV, unit_VV, MODELS.pyramid.ramp(si))
        torch.testing.assert_close(mixture_BLV[:, span], expected_BlV)
    assert torch.equal(chosen.kept_BLV, filtered_BLV.isfinite())
    best_BL2 = mixture_BLV.topk(2).indices
    sure_BL2 = mixture_BLV.gather(-1, best_BL2) > 0  # of codes without weight any may come next
    assert torch.equal(chosen.best_BL2[sure_BL2], best_BL2[sure_BL2])


def test_a_unit_of_logits_is_so_many_units_of_tau():
    guided_BLV = SEQUENTIAL.exact().shown.guided_BLV
    chosen, moved = choices(SEQUENTIAL, guided_BLV), choices(SEQUENTIAL, guided_BLV + 1)
    apart_BLV = moved.score_BLV - chosen.score_BLV
    torch.testing.assert_close(apart_BLV, chosen.factor_L[:, None].expand(apart_BLV.shape), rtol=1e-9, atol=0.0)


def by_hand(score_V: list[float], dropped: int = -1) -> Choices:
    """One position of one image, a unit of logits to a unit of τ; `dropped` is filtered out."""
    score_BLV = torch.tensor([[score_V]], dtype=torch.float64)
    kept_BLV = torch.ones_like(score_BLV, dtype=torch.bool)
    if dropped >= 0:
        kept_BLV[..., dropped] = False
    best_BL2 = score_BLV.masked_fill(~kept_BLV, -torch.inf).topk(min(2, len(score_V))).indices
    return Choices(score_BLV, kept_BLV, best_BL2, torch.ones(1, dtype=torch.float64))


def is_tie(chosen: Choices, reach: float, case: RecordedCase = SEQUENTIAL) -> bool:
    score_BLV = chosen.score_BLV
    return bool(soft_ties(case, score_BLV, chosen, torch.full_like(score_BLV, reach)))


@pytest.mark.parametrize(
    ("behind", "reach", "tie"),
    [
        (2.5, 0.5, True),  # by what the logits may move, and two τ
        (2.501, 0.5, False),
        (0.0, LEAST, False),  # answers in proportion
        (0.0, LEAST + 0.001, True),
        (1000.0, 0.5, False),  # no other code is near: the best is no rival of its own
    ],
)
def test_a_code_that_rounding_brings_near_the_best_is_a_tie_and_one_behind_it_is_none(
    behind: float, reach: float, tie: bool
):
    assert is_tie(by_hand([9.0 - behind, 9.0, 9.0 - 2000]), reach) is tie


def test_a_code_that_is_filtered_out_for_certain_is_no_rival():
    assert not is_tie(by_hand([9.0, 8.5, -50.0], dropped=1), 0.5)
    assert not is_tie(by_hand([8.5, 9.0, 0.0], dropped=1), 0.5)  # nor is it the best
    assert is_tie(by_hand([9.0, 8.5, 8.0], dropped=1), 0.5)


BEST, RIVAL, FAR = 1, 0, 2


@pytest.mark.parametrize("words", FILTERS)
@pytest.mark.parametrize(("code", "tie"), [(BEST, True), (RIVAL, True), (FAR, False)])
@pytest.mark.parametrize("toss", range(2 * TOSSES))
def test_a_filter_that_may_drop_the_best_code_or_a_rival_makes_a_tie_at_whichever_toss(
    toss: int, code: int, tie: bool, words: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    """All codes pass, but for one at one toss; rounding is too little to turn the choice itself."""
    seen: list[Tensor] = []

    def drops(logits_BLV: Tensor, top_k: int, top_p: float) -> Tensor:
        seen.append(logits_BLV)
        assert {"top_k": top_k, "top_p": top_p} == {"top_k": 0, "top_p": 0.0, **words}
        return logits_BLV.index_fill(-1, torch.tensor([code]), -torch.inf) if len(seen) == toss + 1 else logits_BLV

    monkeypatch.setattr(measuring, "filter_logits", drops)
    assert is_tie(by_hand([8.0, 9.0, -50.0]), LEAST / 2, with_request(**words)) is tie
    assert len(seen) == 2 * TOSSES


def test_a_filter_is_tried_with_pairs_of_opposite_moves_as_far_as_rounding_reaches(monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []
    monkeypatch.setattr(
        measuring, "filter_logits", lambda logits_BLV, top_k, top_p: seen.append(logits_BLV) or logits_BLV
    )
    chosen = by_hand([float(k) for k in range(64)])
    reach_BLV = torch.linspace(1, 2, 64, dtype=torch.float64)[None, None]
    soft_ties(with_request(top_k=3), chosen.score_BLV, chosen, reach_BLV)
    moves = [made_BLV - chosen.score_BLV for made_BLV in seen]
    for one_BLV, other_BLV in zip(moves[::2], moves[1::2], strict=True):
        torch.testing.assert_close(one_BLV, -other_BLV)
        torch.testing.assert_close(one_BLV.abs(), reach_BLV)
        assert 16 < int((one_BLV > 0).sum()) < 48  # codes go either way
    assert not torch.equal(moves[0].sign(), moves[2].sign())
    assert not torch.equal(moves[0].sign(), moves[3].sign())


def test_without_a_filter_nothing_is_filtered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measuring, "filter_logits", None)
    assert not is_tie(by_hand([8.0, 9.0, -50.0]), LEAST / 2)


@pytest.mark.parametrize("scores", [[3.0, 5.0, 1.0], [1.0]])
def test_of_any_number_of_codes_the_best_stays_and_the_second_moves_up(scores: list[float]):
    """One position alone, and a codebook of one code."""
    sign_V = tossed(by_hand(scores), 0).flatten().tolist()
    best_first = sorted(range(len(scores)), key=lambda code: -scores[code])
    assert [sign_V[code] for code in best_first[:2]] == [0.0, 1.0][: len(scores)]
    assert all(sign in (-1.0, 1.0) for code, sign in enumerate(sign_V) if code not in best_first[:2])


def test_every_position_of_a_codebook_of_one_code_stays():
    one = by_hand([1.0])
    three = Choices(*(tensor.expand(1, 3, 1) for tensor in (one.score_BLV, one.kept_BLV, one.best_BL2)), one.factor_L)
    assert tossed(three, 0).tolist() == [[[0.0], [0.0], [0.0]]]


def test_tosses_repeat_differ_by_seed_and_leave_the_global_generator():
    chosen = by_hand([float(k) for k in range(64)])
    before = torch.get_rng_state()
    signs = [tossed(chosen, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(signs[0], signs[1])
    assert not torch.equal(signs[0], signs[2])
    assert signs[0].dtype == torch.float64
    assert signs[0].unique().tolist() == [-1.0, 0.0, 1.0]
