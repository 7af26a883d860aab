"""What of a `more_smooth` case is judged, and by how much, at the edges of its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.golden import allowance, smooth
from harness.golden.allowance import allowances, smooth_rounding
from harness.golden.cases import RecordedCase
from harness.golden.result import CaseResult
from harness.golden.smooth import judge_smooth
from harness.golden.spread import Spread, spread
from harness.judge.verdict import Divergence
from harness.protocol.request import Request
from harness.rounding.budget import Budget
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
    assert [d.component for d in result.defects] == ["f_hat"] * wrong


@pytest.mark.parametrize("si", tuple(MODELS.pyramid))
def test_a_scale_is_judged_from_the_recorded_one_before_where_a_free_run_may_go_anywhere(
    si: int, monkeypatch: pytest.MonkeyPatch
):
    spreading(monkeypatch, free_only=True, map_SBPP=torch.inf, rms_BL=torch.inf, peak_BL=torch.inf)
    assert judged(DEEP, recorded()).defects == []
    for kind in ("f_hat", "logits"):
        found = [(d.component, d.scale) for d in judged(DEEP, recorded(f"{kind}/{si}", 1e-2)).defects]
        assert (kind, si) in found


@pytest.mark.parametrize(("images", "ties", "wrong"), [(2, 1, False), (2, 2, True), (29, 2, False), (29, 3, True)])
def test_more_than_very_few_ties_are_a_defect(images: int, ties: int, wrong: bool, monkeypatch: pytest.MonkeyPatch):
    """One tie is few, and so is one of two hundred draws."""

    def tied(case: RecordedCase, tokens_BL: Tensor, run: object, ground: object, result: CaseResult) -> None:
        result.ties += [Divergence("tie", "by hand", 3)] * ties

    monkeypatch.setattr(smooth, "judge_tokens", tied)
    case = replace(CASE, request=replace(CASE.request, labels=(0,) * images))
    run, result = case.run(), CaseResult(case.id, case.request)
    tensors = {"tokens": run.tokens_BL, "f_hat": run.f_hat_BCPP, "image": MODELS.vae.decode(run.f_hat_BCPP)}
    judge_smooth(case, tensors, run, result)
    assert [d.detail for d in result.defects] == [f"{ties} tokens differ, more than 0.5% of the draws"] * wrong


@pytest.mark.parametrize("error", [1e-7, 1e-3])
def test_a_run_is_nudged_by_what_was_measured_and_by_the_cap_at_most(error: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allowance, "_budgets", lambda case: [Budget(1.0, 2 * error, 1.0, "by hand")])  # of margin 2
    cap = 2e-6 * float(RUN.intermediates.rows_RLV.abs().max())
    assert 1e-7 < cap < 1e-3
    assert smooth_rounding(CASE, RUN) == pytest.approx(min(error, cap))
