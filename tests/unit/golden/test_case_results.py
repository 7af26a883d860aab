"""What the golden check notes and makes of it, and what it refuses before memory is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.golden._cases import CaseResult, FileResult, Ground, RecordedCase, golden_totals
from harness.judge import _ties as races
from harness.judge._verdict import Divergence, Verdict
from harness.protocol._request import Request
from harness.protocol.noise import TOKEN
from tests.helpers import Layout, tiny


def test_a_defect_of_a_case_keeps_its_seed_and_scale():
    result = CaseResult("one", Request((0,), 7))
    result.defect("f_hat", "why", 2)
    result.defect("counts", "why not")
    found = [(d.component, d.detail, d.seed, d.scale) for d in result.defects]
    assert found == [("f_hat", "why", 7, 2), ("counts", "why not", 7, -1)]


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ([], Verdict.INCONCLUSIVE),
        (["right"], Verdict.IDENTICAL),
        (["right", "tied"], Verdict.TIE),
        (["tied", "unjudged"], Verdict.INCONCLUSIVE),
        (["right", "unjudged", "wrong"], Verdict.DEFECT),
    ],
)
def test_the_worst_case_is_the_verdict_of_a_file(cases: list[str], verdict: Verdict):
    request = Request((0,), 7)
    tie = Divergence("tie", "by hand", 7)
    made = {
        "right": CaseResult("a", request, 9, 9),
        "tied": CaseResult("b", request, 9, 8, ties=[tie]),
        "unjudged": CaseResult("c", request, 9, not_judged=9, ties=[tie]),
        "wrong": CaseResult("d", request, 9, not_judged=9, defects=[Divergence("image", "by hand", 7)]),
    }
    result = FileResult("of-no-file", [made[name] for name in cases])
    assert result.verdict is verdict
    assert replace(result, defects=["stray"]).verdict is Verdict.DEFECT
    unverified = replace(result, unverified="elsewhere").verdict
    assert unverified is (Verdict.DEFECT if verdict is Verdict.DEFECT else Verdict.INCONCLUSIVE)


def test_the_last_line_tells_cases_that_hold_and_draws_that_were_judged():
    request = Request((0,), 7)
    tie, wrong = Divergence("tie", "by hand", 7), Divergence("token", "by hand", 7)
    right, tied = CaseResult("a", request, 1000, 1000), CaseResult("b", request, 10, 9, ties=[tie])
    unjudged = CaseResult("c", request, 200, not_judged=200)
    half = CaseResult("d", request, 30, 25, not_judged=5)
    bent = CaseResult("e", request, 4, 3, defects=[wrong])

    def told(*files: list[CaseResult]) -> str:
        return golden_totals([FileResult("of-no-file", cases) for cases in files])

    assert told() == told([]) == "0 of 0 cases, 0 draws compared"
    assert told([CaseResult("a", request, 1, 1)]) == "1 of 1 case, 1 draw compared"
    assert told([right], [tied, bent]) == "2 of 3 cases, 1014 draws compared"
    assert told([right, half]) == "2 of 2 cases, 1025 draws compared, 5 not judged"
    assert told([half], [unjudged]) == "1 of 2 cases, 25 draws compared, 205 not judged"


# ---- recorded tokens ----


MODELS = tiny(Layout((1, 2, 3)))
CASE = RecordedCase("a", "sequential", Request((0, 1), 3, cfg=4.0), MODELS)
RUN = CASE.run()
IMAGE, POSITION = 1, 8  # of scale 2
WIDE = 1e3


def judged(margin: float, error: float, whole: bool = True, off: float = 0.0) -> CaseResult:
    """Judge one token that is another; `off`: how far a logit of the run is off at that position."""
    tokens_BL = RUN.tokens_BL.clone()
    tokens_BL[IMAGE, POSITION] = (tokens_BL[IMAGE, POSITION] + 1) % 11
    guided_BLV = RUN.intermediates.guided_BLV.clone()
    guided_BLV[IMAGE, POSITION, 0] += off
    run = replace(RUN, intermediates=replace(RUN.intermediates, guided_BLV=guided_BLV))
    everywhere_BL = torch.ones(tokens_BL.shape, dtype=torch.float64)
    # nothing is allowed anywhere else, so that another position's allowance would tell
    margin_BL, error_BL, judged_BL = 0 * everywhere_BL, 0 * everywhere_BL, everywhere_BL == 1
    margin_BL[IMAGE, POSITION], error_BL[IMAGE, POSITION], judged_BL[IMAGE, POSITION] = margin, error, whole
    result = CaseResult("a", CASE.request)
    Ground(CASE.exact(tokens_BL), margin_BL, error_BL, judged_BL).judge_tokens(CASE, tokens_BL, run, result)
    return result


def only(found: list[Divergence]) -> Divergence:
    assert len(found) == 1
    return found[0]


def race() -> tuple[Tensor, int, int]:
    """Return the scores of the race in float64, the token that wins it, and the one that is recorded."""
    expected = int(RUN.tokens_BL[IMAGE, POSITION])
    tokens_BL = RUN.tokens_BL.clone()
    tokens_BL[IMAGE, POSITION] = (expected + 1) % 11
    exact_V = CASE.exact(tokens_BL).intermediates.guided_BLV[IMAGE, POSITION]
    E_V = MODELS.noise(CASE.request).exponential(2, TOKEN, "test")[IMAGE, POSITION - MODELS.pyramid.begin(2)]
    return exact_V - E_V.double().log(), expected, (expected + 1) % 11


@pytest.mark.parametrize(
    ("share", "component", "detail"),
    [
        (0.0, "token", "the recorded token is not the draw on its own prefix"),
        (1.0, "tie", "within the error budget of float64"),
    ],
)
def test_a_differing_token_is_told_with_its_place_and_its_race(share: float, component: str, detail: str):
    score_V, expected, actual = race()
    margin = float(score_V.max() - score_V[actual])
    assert margin > 0  # float64 draws what is drawn here
    result = judged(share * margin, WIDE, off=0.5)
    found = only(result.ties if share else result.defects)
    bound = 2 * share * margin + races.RACE_ROUNDING
    told = Divergence(component, detail, 3, IMAGE, 1, 2, POSITION, actual, expected, found.margin, bound, 0.5)
    assert replace(found, delta_logits=0.5, delta_f_hat=told.delta_f_hat) == told
    assert found.margin == pytest.approx(margin, rel=1e-12)
    assert found.delta_logits == pytest.approx(0.5, abs=1e-5)


def test_a_margin_of_just_what_is_allowed_is_a_tie(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(races, "RACE_ROUNDING", 0.0)
    margin = only(judged(0.0, WIDE).defects).margin
    assert len(judged(margin / 2, WIDE).ties) == 1


def test_a_run_that_is_off_by_just_what_is_allowed_may_have_a_tie():
    error = only(judged(WIDE, WIDE).ties).delta_logits
    assert len(judged(WIDE, error).ties) == 1


def test_drawn_labels_come_before_any_number(monkeypatch: pytest.MonkeyPatch):
    case = replace(CASE, request=replace(CASE.request, labels=None, count=2, order="batch"))
    run = case.run()
    tokens_BL = run.tokens_BL.clone()
    tokens_BL[0, 0] = (tokens_BL[0, 0] + 1) % 11
    nothing_BL, result = torch.zeros(tokens_BL.shape, dtype=torch.float64), CaseResult("a", case.request)
    ground = Ground(case.exact(tokens_BL), nothing_BL, nothing_BL + WIDE, nothing_BL == 0)
    ground.judge_tokens(case, tokens_BL, run, result)
    noise = MODELS.noise(case.request)
    label = int(noise.labels(MODELS.target.config.classes)[0])
    score_V = ground.exact.intermediates.guided_BLV[0, 0] - noise.exponential(0, TOKEN, "test")[0, 0].double().log()
    found = only(result.defects)
    assert found.label == label
    assert found.margin == pytest.approx(float(score_V.max() - score_V[found.actual]), rel=1e-12)


@pytest.mark.parametrize(("share", "tie"), [(0.51, True), (0.49, False)])
def test_both_logits_of_a_race_may_move_by_what_is_allowed_and_no_more(share: float, tie: bool):
    margin = only(judged(0.0, WIDE).defects).margin
    result = judged(share * margin, WIDE)
    assert (len(result.ties), len(result.defects)) == (tie, not tie)


@pytest.mark.parametrize(("error", "tie"), [(0.4, False), (0.6, True)])
def test_a_run_whose_logits_are_wrong_themselves_has_no_ties(error: float, tie: bool):
    result = judged(WIDE, error, off=0.5)
    assert (len(result.ties), len(result.defects)) == (tie, not tie)


def test_what_is_not_judged_is_neither_tie_nor_defect():
    result = judged(0.0, 0.0, whole=False)
    assert (result.ties, result.defects) == ([], [])
