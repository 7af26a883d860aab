"""Two decoders side by side: the first tensor that differs, the tokens that do, and what neither shows."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from harness.judge._against import SHOWN, changed_counts, judge_against
from harness.judge._evidence import Evidence
from harness.judge._verdict import Judgement, Verdict
from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.protocol.noise import TOKEN
from harness.rounding._budget import Budget
from tests.unit.judge.test_tokens import MODELS, evidence, hidden, swapped

OTHER = "mine:factory"
NAMES = ("yours:factory", OTHER)
SPAN = MODELS.pyramid.span(1)


def against(found: Evidence) -> Judgement:
    judgement = judge_against(found, NAMES)
    made = judgement.identical + len(judgement.ties) + judgement.wrong_tokens + judgement.unclaimed
    assert judgement.draws in (0, made)
    return judgement


def moved(found: Evidence, name: str, row: int, far: float) -> Evidence:
    """Move one number of scale 1 in one row of the decoder's tensor."""
    kept = found.actual.intermediates
    tensor = getattr(kept, name).clone()
    at = (1, row) if name == "f_hat_SBCPP" else (row, SPAN)
    tensor[at].view(-1)[:1] += far
    return replace(found, actual=replace(found.actual, intermediates=replace(kept, **{name: tensor})))


def allowed(found: Evidence, name: str) -> float:
    """Return how far two right decoders may be apart: both one budget away, the other way."""
    x = float(found.expected.intermediates.x_RLD[:, SPAN].abs().max())
    return {
        "x_RLD": max(2 * found.budget.f_hat, 1e-5) * max(1.0, x),
        "rows_RLV": 2 * found.budget.rows,
        "guided_BLV": 2 * found.allowance(1).logits,
        "f_hat_SBCPP": 2 * found.budget.f_hat,
    }[name]


WIDE = Budget(0.01, 0.01, 0.02, "by hand")


def test_two_that_agree_are_identical():
    judgement = against(evidence(WIDE))
    assert (judgement.verdict, judgement.draws, judgement.identical) == (Verdict.IDENTICAL, 28, 28)
    assert judgement.compared == ["tokens", "final f_hat", *SHOWN]
    assert judgement.not_compared == {}


@pytest.mark.parametrize("side", ["actual", "expected"])
def test_what_one_does_not_show_is_not_compared(side: str):
    found = evidence(WIDE)
    found = replace(found, **{side: replace(getattr(found, side), intermediates=None)})
    judgement = against(found)
    assert (judgement.verdict, judgement.compared) == (Verdict.IDENTICAL, ["tokens", "final f_hat"])
    assert judgement.not_compared == dict.fromkeys(SHOWN, "one of the two shows no Trace.intermediates")


@pytest.mark.parametrize(
    ("side", "said"), [("actual", "yours:factory: tokens_BL"), ("expected", "mine:factory: tokens_BL")]
)
def test_a_trace_of_another_form_is_a_defect_of_its_side_and_nothing_is_compared(side: str, said: str):
    found = evidence(WIDE)
    trace = getattr(found, side)
    judgement = against(replace(found, **{side: replace(trace, tokens_BL=trace.tokens_BL.float())}))
    (defect,) = judgement.defects
    assert (defect.component, defect.seed) == ("trace", 3)
    assert defect.detail.startswith(said)
    assert (judgement.images, judgement.draws, judgement.compared) == (2, 0, [])


def test_a_scale_that_was_never_final_is_told_of_its_image_and_scale():
    found = evidence(WIDE)
    found.expected.scale_writes_BS[1, 2] = 0
    (defect,) = against(found).defects
    assert (defect.component, defect.detail) == ("scheduling", f"{OTHER}: scale 2 was made final 0 times, not once")
    assert (defect.seed, defect.image, defect.scale) == (3, 1, 2)


def test_two_that_lack_the_same_scale_are_compared_up_to_there():
    found = evidence(WIDE)
    for side in (found.actual, found.expected):
        side.scale_writes_BS[:, 2] = 0
    judgement = against(found)
    assert judgement.verdict is Verdict.IDENTICAL
    assert judgement.draws == judgement.identical == 2 * 5
    said = "both end alike, component scheduling (scale 2 was made final 0 times, not once); "
    assert judgement.so_far == f"{said}compared up to there: 2 final scales"
    found.actual.scale_writes_BS[:, 0] = 0
    found.expected.scale_writes_BS[:, 0] = 0
    judgement = against(found)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    found.actual.tokens_BL = found.actual.tokens_BL.float()
    assert against(found).verdict is Verdict.DEFECT


PARTS = {"x_RLD": "query", "rows_RLV": "mask, cache or network", "guided_BLV": "guidance", "f_hat_SBCPP": "f_hat"}
ROWS = [("x_RLD", 1), ("x_RLD", 3), ("rows_RLV", 1), ("rows_RLV", 3), ("guided_BLV", 1), ("f_hat_SBCPP", 1)]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_tensor_that_differs_by_more_than_rounding_is_named_and_the_bound_is_tight(name: str, row: int):
    bound = allowed(evidence(WIDE), name)
    assert against(moved(evidence(WIDE), name, row, 0.98 * bound)).verdict is Verdict.IDENTICAL
    judgement = against(moved(evidence(WIDE), name, row, 1.02 * bound))
    (defect,) = judgement.defects
    assert (defect.component, defect.seed, defect.image, defect.label, defect.scale) == (PARTS[name], 3, 1, 1, 1)
    explained = f"rounding explains {re.escape(f'{bound:.2g}')}(; yours:.*)?"
    word = "f_hat after scale 1" if name == "f_hat_SBCPP" else f"{name} of scale 1"
    assert re.fullmatch(rf"{word} differs by [\d.e+-]+, {explained}", defect.detail)
    assert (judgement.wrong_tensors, judgement.identical, judgement.wrong_tokens) == (1, 28, 0)


def test_a_tensor_that_one_side_alone_wrote_is_infinitely_far_and_one_that_neither_wrote_is_equal():
    nan = float("nan")
    assert "differs by inf" in against(moved(evidence(WIDE), "rows_RLV", 0, nan)).defects[0].detail
    both = moved(evidence(WIDE), "rows_RLV", 0, nan)
    kept = both.actual.intermediates
    same = replace(both.expected, intermediates=replace(both.expected.intermediates, rows_RLV=kept.rows_RLV))
    assert against(replace(both, expected=same)).verdict is Verdict.IDENTICAL


def test_the_first_wrong_tensor_of_an_image_is_told_and_no_other():
    found = moved(moved(evidence(WIDE), "guided_BLV", 0, 9.0), "f_hat_SBCPP", 0, 9.0)
    found = moved(found, "rows_RLV", 1, 9.0)
    judgement = against(found)
    assert [(each.image, each.component) for each in judgement.defects] == [
        (0, "guidance"),
        (1, "mask, cache or network"),
    ]
    assert judgement.wrong_tensors == 2


def test_the_first_scale_with_a_wrong_tensor_is_told_and_no_later_one():
    for name, component in (("f_hat_SBCPP", "f_hat"), ("rows_RLV", "mask or network")):
        found = evidence(WIDE)
        kept = found.actual.intermediates
        getattr(kept, name)[0] += 9.0  # f_hat of scale 0, of both images; or the rows of image 0, of every scale
        kept.guided_BLV[:, MODELS.pyramid.span(2)] += 9.0
        judgement = against(found)
        assert [(each.image, each.scale) for each in judgement.defects] == [
            (0, 0),
            (1, 0 if component == "f_hat" else 2),
        ]
        assert judgement.defects[0].component == component
        assert judgement.wrong_tensors == 2


def test_where_nothing_may_move_equal_tensors_are_equal():
    assert against(evidence(Budget(0.0, 0.0, 0.0, "by hand"))).verdict is Verdict.IDENTICAL


def test_without_intermediates_the_final_f_hat_is_compared():
    for far, count in ((0.98, 0), (1.02, 1)):
        found = hidden(evidence(WIDE))
        f_hat = found.actual.f_hat_BCPP.clone()
        f_hat[1, 0, 0, 0] += far * 2 * WIDE.f_hat
        judgement = against(replace(found, actual=replace(found.actual, f_hat_BCPP=f_hat)))
        assert [(d.component, d.image, d.scale) for d in judgement.defects] == [("f_hat", 1, 2)] * count
        assert judgement.wrong_tensors == count


@pytest.mark.parametrize("greedy", [False, True])
def test_another_token_behind_equal_logits_is_a_draw_or_a_tie(greedy: bool):
    found, gap = swapped(evidence(greedy=greedy), 1, 2)
    judgement = against(found)
    first = judgement.defects[0]
    assert (first.component, first.detail) == ("draw", "the logits agree, and the tokens differ")
    assert (first.seed, first.image, first.label, first.scale, first.position) == (3, 1, 1, 1, 2)
    assert first.actual == int(found.actual.tokens_BL[1, 2]) != first.expected == int(found.expected.tokens_BL[1, 2])
    assert first.margin == pytest.approx(gap, rel=1e-3)
    assert first.bound < gap
    later = int((found.actual.tokens_BL[1, 5:] != found.expected.tokens_BL[1, 5:]).sum())
    assert (judgement.wrong_tokens, judgement.unclaimed, judgement.wrong_tensors) == (1, later, 0)
    wide = Budget(gap / 2 / 5, gap, 1e-6, "by hand")  # cfg 4 at scale 1 of 3: t = 2, five errors of a row
    judgement = against(replace(found, budget=replace(wide, rows=1.0001 * wide.rows)))
    assert [(tie.component, tie.detail) for tie in judgement.ties] == [("tie", "rounding decides between the two")]
    assert (judgement.wrong_tokens, judgement.defects) == (0, [])
    assert against(replace(found, budget=replace(wide, rows=0.999 * wide.rows))).wrong_tokens == 1


def test_drawn_labels_come_before_the_numbers_which_are_drawn_once(monkeypatch: pytest.MonkeyPatch):
    """The published order: one generator for labels and numbers, so that whoever forgets the labels meets others."""
    request = Request(None, 3, cfg=4.0, count=2, order="batch")
    noise = MODELS.noise(request)
    noise.labels(MODELS.target.config.classes)
    found = evidence(request=request)
    token, best = (int(of[1, 2]) for of in (found.actual.tokens_BL, found.expected.tokens_BL))
    assert token == best
    guided_V = found.expected.intermediates.guided_BLV[1, 2].double()
    score_V = guided_V - noise.exponential(1, TOKEN, "test")[1, 1].double().log()
    order = score_V.argsort(descending=True)
    assert int(order[0]) == best
    found.actual.tokens_BL[1, 2:4] = order[1]
    asked, made = [], ModelPair.noise
    monkeypatch.setattr(ModelPair, "noise", lambda self, of: asked.append(of) or made(self, of))
    first = against(found).defects[0]
    assert (first.component, first.position, first.label) == ("draw", 2, -1)
    assert first.margin == pytest.approx(float(score_V[order[0]] - score_V[order[1]]), rel=1e-3)
    assert asked == [request]


def test_tokens_of_later_scales_are_unclaimed_of_every_image():
    found = evidence()
    for image in (0, 1):
        found.actual.tokens_BL[image, [0, 3, 13 - image]] += 1
    found.actual.tokens_BL.remainder_(MODELS.target.config.V)
    assert (against(hidden(found)).wrong_tokens, against(hidden(found)).unclaimed) == (2, 4)


def test_another_token_without_logits_is_a_token():
    found, _ = swapped(evidence(), 0, 13)
    blind = replace(found, expected=replace(found.expected, intermediates=None))
    (defect,) = against(blind).defects
    assert (defect.component, defect.detail, defect.scale) == ("token", "the tokens differ", 2)
    assert math.isnan(defect.margin)
    assert defect.bound == pytest.approx(2 * found.allowance(2).logits, rel=0.1)


def test_behind_a_wrong_tensor_no_token_is_excused():
    found, gap = swapped(evidence(), 1, 2)
    wide = Budget(gap, gap, 1e-6, "by hand")
    judgement = against(replace(moved(found, "rows_RLV", 1, 99 * gap), budget=wide))
    assert [each.component for each in judgement.defects] == ["mask, cache or network", "token"]


def test_records_are_in_the_order_of_scales():
    late, _ = swapped(evidence(), 0, 13)
    early, _ = swapped(late, 1, 0)
    assert [(each.scale, each.image) for each in against(hidden(early)).defects] == [(0, 1), (2, 0)]


def test_counts_that_are_others_are_told_where_both_show_them():
    one = replace(evidence().actual, target_calls=[2, 3], target_rows=[], draft_calls=[1, 1], draft_rows=[4, 4])
    other = replace(one, target_calls=[3, 3], target_rows=[9, 9], draft_rows=[4, 5])
    assert changed_counts(one, other) == ["target_calls: 5, and 6 by the other", "draft_rows: 8, and 9 by the other"]
    assert changed_counts(one, one) == []
