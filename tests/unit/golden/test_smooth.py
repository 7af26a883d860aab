"""What of a `more_smooth` case is judged, and by how much, at the edges of its limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.golden import _cases as allowance
from harness.golden import _smooth as smooth
from harness.golden._cases import CaseResult, Ground, RecordedCase, allowances, smooth_rounding
from harness.golden._smooth import Spread, judge_smooth, spread
from harness.judge._verdict import Divergence
from harness.protocol._request import Request
from harness.rounding._budget import Budget
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
CASE = RecordedCase("a", "sequential", Request((0, 1), 3, cfg=4.0, more_smooth=True), MODELS)
DEEP = replace(CASE, f_hats=True, logits="all")
RUN = CASE.run()


def recorded(name: str = "", by: float = 0.0) -> dict[str, Tensor]:
    """Return the tensors of `DEEP`, one number of one of them another."""
    shown = RUN.intermediates
    tensors = {"tokens": RUN.tokens_BL, "f_hat": RUN.f_hat_BCPP, "image": MODELS.vae.decode(RUN.f_hat_BCPP)}
    tensors |= {f"f_hat/{si}": shown.f_hat_SBCPP[si] for si in MODELS.pyramid}
    tensors |= {f"logits/{si}": shown.guided_BLV[:, MODELS.pyramid.span(si)] for si in MODELS.pyramid}
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    if name:
        tensors[name].flatten()[-1] += by
    return tensors


def judged(case: RecordedCase, tensors: Mapping[str, Tensor]) -> CaseResult:
    result = CaseResult(case.id, case.request)
    with torch.inference_mode():
        judge_smooth(case, tensors, RUN, result)
    return result


def spreading(monkeypatch: pytest.MonkeyPatch, free_only: bool = False, **values: float) -> None:
    """Let rounding lead this far, everywhere; `free_only`: runs from the recorded f_hat keep what they have."""

    def given(case: RecordedCase, error: float, raw: Mapping[int, Tensor] | None = None) -> Spread:
        found = spread(case, error, raw)
        if free_only and raw is not None:
            return found
        return replace(found, **{key: torch.full_like(getattr(found, key), value) for key, value in values.items()})

    monkeypatch.setattr(smooth, "spread", given)


@pytest.mark.parametrize(
    ("rms", "peak", "share"), [(0.12, 0.49, 0), (0.13, 0.49, 1), (0.12, 0.51, 1)], ids=["both", "rms", "peak"]
)
def test_positions_are_judged_where_neither_mean_nor_peak_may_move_far(
    rms: float, peak: float, share: int, monkeypatch: pytest.MonkeyPatch
):
    spreading(monkeypatch, rms_BL=rms, peak_BL=peak)
    result = judged(CASE, recorded())
    assert (result.not_judged, result.identical) == (share * result.draws, (1 - share) * result.draws)
    assert result.defects == []


@pytest.mark.parametrize(("widest", "share"), [(0.019, 0), (0.021, 1)])
def test_f_hat_is_judged_where_it_may_not_move_far(widest: float, share: int, monkeypatch: pytest.MonkeyPatch):
    spreading(monkeypatch, map_SBPP=widest)
    result = judged(CASE, recorded())
    assert result.map_not_judged == share * result.map_positions


@pytest.mark.parametrize(("floors", "wrong"), [(0.7, False), (1.5, True)])
def test_where_rounding_leads_nowhere_f_hat_may_be_off_by_rounding_alone(
    floors: float, wrong: bool, monkeypatch: pytest.MonkeyPatch
):
    spreading(monkeypatch, map_SBPP=0.0)
    result = judged(CASE, recorded("f_hat", floors * allowances(CASE, RUN).f_hat))
    assert [(d.component, d.scale) for d in result.defects] == [("f_hat", 2)] * wrong


@pytest.mark.parametrize(("wide", "share"), [((torch.inf, torch.inf, 0.0), 0), ((0.0, 0.0, torch.inf), 1)])
def test_the_final_f_hat_is_judged_by_what_rounding_does_to_the_last_scale(
    wide: tuple[float, ...], share: int, monkeypatch: pytest.MonkeyPatch
):
    map_SBPP = torch.tensor(wide)[:, None, None, None].expand(3, 2, 3, 3)
    monkeypatch.setattr(smooth, "spread", lambda *a: replace(spread(*a), map_SBPP=map_SBPP))
    result = judged(CASE, recorded("f_hat", 2 * allowances(CASE, RUN).f_hat))
    assert (result.map_positions, result.map_not_judged) == (18, share * 18)
    assert [d.component for d in result.defects] == ["f_hat"] * (1 - share)


def test_where_every_scale_follows_from_the_one_before_a_position_of_f_hat_is_judged(monkeypatch: pytest.MonkeyPatch):
    """However far a free run may go; and one scale that may go anywhere leaves that position open, no other one."""

    def given(case: RecordedCase, error: float, raw: Mapping[int, Tensor] | None = None) -> Spread:
        found = spread(case, error, raw)
        if raw is None:
            return replace(found, map_SBPP=torch.full_like(found.map_SBPP, torch.inf))
        found.map_SBPP[1, 0, 2, 1] = torch.inf
        return found

    monkeypatch.setattr(smooth, "spread", given)
    result = judged(DEEP, recorded())
    assert (result.defects, result.map_positions, result.map_not_judged) == ([], 18, 1)


@pytest.mark.parametrize("si", tuple(MODELS.pyramid))
def test_a_scale_is_judged_from_the_recorded_one_before_where_a_free_run_may_go_anywhere(
    si: int, monkeypatch: pytest.MonkeyPatch
):
    spreading(monkeypatch, free_only=True, map_SBPP=torch.inf, rms_BL=torch.inf, peak_BL=torch.inf)
    assert judged(DEEP, recorded()).defects == []
    for kind in ("f_hat", "logits"):
        found = [(d.component, d.scale) for d in judged(DEEP, recorded(f"{kind}/{si}", 1e-2)).defects]
        assert (kind, si) in found
        assert (("logits", si + 1) in found) == (kind == "f_hat" and si < 2)  # what follows is judged along it


@pytest.mark.parametrize(("images", "ties", "wrong"), [(2, 1, False), (2, 2, True), (29, 2, False), (29, 3, True)])
def test_more_than_very_few_ties_are_a_defect(images: int, ties: int, wrong: bool, monkeypatch: pytest.MonkeyPatch):
    """One tie is few, and so is one of two hundred draws."""

    def tied(ground: Ground, case: RecordedCase, tokens_BL: Tensor, run: object, result: CaseResult) -> None:
        result.ties += [Divergence("tie", "by hand", 3)] * ties

    monkeypatch.setattr(Ground, "judge_tokens", tied)
    case = replace(CASE, request=replace(CASE.request, labels=(0,) * images))
    run, result = case.run(), CaseResult(case.id, case.request)
    tensors = {"tokens": run.tokens_BL, "f_hat": run.f_hat_BCPP, "image": MODELS.vae.decode(run.f_hat_BCPP)}
    judge_smooth(case, tensors, run, result)
    said = ("token", f"{ties} tokens differ, more than 0.5% of the draws")
    assert [(d.component, d.detail) for d in result.defects] == [said] * wrong


def test_a_case_of_some_logits_is_judged_by_those():
    """So small a pyramid has all of them in "some", too."""
    some = replace(DEEP, logits="some")
    assert judged(some, recorded()).defects == []
    assert [d.component for d in judged(some, recorded("logits/2", 1e-2)).defects] == ["logits"]


def test_the_image_is_that_of_the_recorded_f_hat_to_the_limit(monkeypatch: pytest.MonkeyPatch):
    off = judged(CASE, recorded("image", 1e-3)).delta_image
    assert off == pytest.approx(1e-3, rel=1e-3)
    monkeypatch.setitem(allowance.LIMITS, "image", off)
    assert judged(CASE, recorded("image", 1e-3)).defects == []
    monkeypatch.setitem(allowance.LIMITS, "image", off / 2)
    (defect,) = judged(CASE, recorded("image", 1e-3)).defects
    assert (defect.component, defect.detail) == ("image", "image is not that of f_hat: off by 0.001, allowed 0.0005")


def test_f_hat_of_the_last_scale_is_the_final_one_to_the_bit():
    (defect,) = judged(DEEP, recorded("f_hat/2", 1e-6)).defects
    assert (defect.component, defect.detail, defect.scale) == ("f_hat", "f_hat is not f_hat/2", 2)


def test_the_largest_difference_of_any_scale_is_told():
    result = judged(DEEP, recorded("f_hat/1", 1e-2))
    assert result.delta_f_hat == pytest.approx(1e-2, rel=1e-2)


@pytest.mark.parametrize(("name", "component"), [("f_hat", "f_hat"), ("logits/2", "logits")])
def test_just_what_is_allowed_is_right_and_where_all_is_allowed_nothing_is_compared(name: str, component: str):
    result, allowed = CaseResult(CASE.id, CASE.request), torch.tensor([[0.5], [torch.inf]])
    actual, expected = torch.tensor([[0.5, 0.0], [9.0, 9.0]]), torch.zeros(2, 2)
    assert result.compare(name, actual, expected, allowed, 2) == 0.5
    assert result.defects == []
    assert result.compare(name, actual + 0.25, expected, allowed, 2) == 0.75
    said = (component, f"{name} is off by 0.75, allowed 0.5", 2)
    assert [(d.component, d.detail, d.scale) for d in result.defects] == [said]
    nowhere = torch.full_like(allowed, torch.inf)
    assert math.isnan(result.compare(name, actual, expected, nowhere, 2))


@pytest.mark.parametrize("error", [1e-7, 1e-3])
def test_a_run_is_nudged_by_what_was_measured_and_by_the_cap_at_most(error: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allowance, "_budgets", lambda case: [Budget(1.0, 2 * error, 1.0, "by hand")])  # of margin 2
    cap = 2e-6 * float(RUN.intermediates.rows_RLV.abs().max())
    assert 1e-7 < cap < 1e-3
    assert smooth_rounding(CASE, RUN) == pytest.approx(min(error, cap))
