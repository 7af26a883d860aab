"""What the golden check notes and makes of it, and what it refuses before memory is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.golden.judgements import CaseResult, FileResult, golden_totals
from harness.judge.verdict import Divergence, Verdict
from harness.protocol.request import Request


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
