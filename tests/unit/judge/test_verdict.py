"""Which verdict outranks which, and what a record says."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from harness.judge._verdict import Divergence, Judgement, Verdict, worst_verdict

WORST_FIRST = ["DEFECT", "INCONCLUSIVE", "CONSISTENT", "TIE", "IDENTICAL"]


def test_every_pair_of_verdicts_is_ranked():
    for a, b in permutations(WORST_FIRST, 2):
        expected = min(a, b, key=WORST_FIRST.index)
        assert worst_verdict([Verdict(a), Verdict(b)]).value == expected
    assert worst_verdict([]) is Verdict.INCONCLUSIVE
    assert worst_verdict([Verdict.IDENTICAL]) is Verdict.IDENTICAL


def test_the_exit_status_follows_from_the_verdict():
    assert [Verdict(name).exit_status for name in WORST_FIRST] == [1, 3, 0, 0, 0]


WRONG, TIE = Divergence("draw", "why", 0), Divergence("tie", "why", 0)


@pytest.mark.parametrize(
    ("judgement", "verdict"),
    [
        (Judgement(1), "INCONCLUSIVE"),  # nothing compared
        (Judgement(1, draws=5), "IDENTICAL"),
        (Judgement(1, draws=5, ties=[TIE]), "TIE"),
        (Judgement(1, draws=5, claims_tokens=False), "CONSISTENT"),
        (Judgement(1, draws=5, ties=[TIE], claims_tokens=False), "CONSISTENT"),
        (Judgement(1, draws=5, inconclusive=["why"]), "INCONCLUSIVE"),
        (Judgement(1, draws=5, ties=[TIE], inconclusive=["why"]), "INCONCLUSIVE"),
        (Judgement(1, draws=5, inconclusive=["why"], claims_tokens=False), "INCONCLUSIVE"),
        (Judgement(1, draws=5, defects=[WRONG], inconclusive=["why"]), "DEFECT"),
        (Judgement(1, draws=5, defects=[WRONG], ties=[TIE]), "DEFECT"),
        (Judgement(1, defects=[WRONG]), "DEFECT"),
        (Judgement(1, draws=5, defects=[WRONG], claims_tokens=False), "DEFECT"),
    ],
)
def test_a_defect_outranks_everything(judgement: Judgement, verdict: str):
    assert judgement.verdict.value == verdict


def test_a_count_is_a_number_or_the_length_of_a_list():
    judgement = Judgement(2, draws=9, identical=4, ties=[TIE], wrong_tokens=4, defects=[WRONG, WRONG], unlisted=3)
    names = ("images", "draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects")
    assert [judgement.count(name) for name in names] == [2, 9, 4, 1, 4, 0, 0, 5]


def test_a_record_says_all_that_it_holds():
    whole = Divergence("draw", "why", 3, 1, 7, 2, 5, 4, 6, 0.25, 0.125, 1e-3, 2e-3)
    assert str(whole) == (
        "component draw (why) at seed 3, image 1, label 7, scale 2, position 5: token 4, expected 6, "
        "margin 0.25 (bound 0.125), |Δlogits| 0.001, |Δf_hat| 0.002"
    )
    assert str(Divergence("draw", "why", 0, 0, 0, 0, 0, 0, 0)) == (
        "component draw (why) at seed 0, image 0, label 0, scale 0, position 0: token 0 agrees"
    )
    dropped = replace(whole, margin=float("inf"))
    assert str(dropped).endswith(": token 4, expected 6, the filter drops 4, |Δlogits| 0.001, |Δf_hat| 0.002")
    assert str(WRONG) == "component draw (why) at seed 0"


def test_plain_values_hold_no_nan_and_no_infinity():
    values = Divergence("draw", "why", 3, margin=float("inf"), bound=0.5).as_dict()
    assert (values["margin"], values["bound"], values["delta_logits"], values["seed"]) == (None, 0.5, None, 3)
    assert (values["component"], values["detail"], values["position"]) == ("draw", "why", -1)
    assert (values["actual"], values["expected"], values["image"]) == (-1, -1, -1)
