"""One judgement: its order, its tensors, what it says was compared."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from harness.judge._components import WrongTensor
from harness.judge._decode import _judge_tensors, _say_what_was_compared, image_distances, judge
from harness.judge._evidence import Evidence
from harness.judge._verdict import Judgement, Verdict
from harness.protocol._decoder import Contract
from harness.protocol._request import Request
from harness.protocol._trace import Intermediates
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import Budget
from tests.helpers import Layout, tiny
from tests.unit.judge.test_tokens import MODELS, REQUEST, evidence, hidden, swapped

SHOWN = ["inputs", "rows", "guided logits", "f_hat of every scale"]
COUNTS = "calls and rows"


def kept(found: Evidence) -> Intermediates:
    assert found.actual.intermediates is not None
    return found.actual.intermediates


def test_the_reference_follows_the_decoders_tokens_where_they_differ():
    found, _ = swapped(evidence(), 0, 3)
    along = replace(found, costs_SB3=torch.ones(3, 2, 3)).along()
    noise = MODELS.noise(REQUEST)
    due = sample_sequential(MODELS.target, MODELS.vae, REQUEST, noise, forced_BL=found.actual.tokens_BL)
    assert torch.equal(along.expected.tokens_BL, due.tokens_BL)
    # the image that differs ran alone, which may sum in another order; the other one is left as it was
    assert torch.allclose(along.expected.f_hat_BCPP[0], due.f_hat_BCPP[0], rtol=0, atol=1e-6)
    assert torch.equal(along.expected.f_hat_BCPP[1], found.expected.f_hat_BCPP[1])
    assert not torch.equal(along.expected.f_hat_BCPP, found.expected.f_hat_BCPP)
    assert along.costs_SB3 is None  # those of another prefix
    greedy, _ = swapped(evidence(greedy=True), 0, 13)  # the last position: nothing hangs on it
    assert torch.equal(greedy.along().expected.tokens_BL, greedy.expected.tokens_BL)
    assert not torch.equal(replace(greedy, greedy=False).along().expected.tokens_BL, greedy.expected.tokens_BL)


def test_a_wrong_tensor_is_placed_at_the_worst_position_of_its_scale():
    found = evidence()
    kept(found).guided_BLV[1, 7, 2] += 0.5
    kept(found).guided_BLV[1, 9, 4] -= 2.0
    kept(found).guided_BLV[1, 2, 0] -= 9.0  # of another scale
    kept(found).f_hat_SBCPP[2, 1, 0, 0, 0] += 0.25
    (wrong,) = _judge_tensors(found, {0: None, 1: WrongTensor(2, "guidance", "why")})
    assert (wrong.component, wrong.detail, wrong.seed) == ("guidance", "why", 3)
    assert (wrong.image, wrong.label, wrong.scale, wrong.position) == (1, 1, 2, 9)
    assert wrong.actual == wrong.expected == int(found.actual.tokens_BL[1, 9])
    assert wrong.delta_logits == pytest.approx(2, abs=1e-5)
    assert wrong.delta_f_hat == pytest.approx(0.25, abs=1e-5)
    unlabelled = replace(found, request=replace(REQUEST, labels=None, count=2, order="batch"))
    assert _judge_tensors(unlabelled, {0: None, 1: WrongTensor(2, "guidance", "why")})[0].label == -1


@pytest.mark.parametrize(
    ("scale", "pixel", "position"), [(2, (1, 2), 10), (1, (2, 0), 3), (1, (0, 2), 2), (0, (2, 2), 0)]
)
def test_a_wrong_f_hat_is_placed_where_it_is_wrong_and_not_where_right_logits_were_rounded(
    scale: int, pixel: tuple[int, int], position: int
):
    assert MODELS.pyramid.patch_nums == (1, 2, 3)
    found = evidence()
    for rounded in (0.0, 1e-7):  # a batch sums in another order than an image alone
        kept(found).guided_BLV[1, 6, 2] += rounded
        kept(found).f_hat_SBCPP[scale, 1, 0, *pixel] += 0.25
        (wrong,) = _judge_tensors(found, {0: None, 1: WrongTensor(scale, "f_hat", "why")})
        assert wrong.position == position


def test_where_f_hat_is_right_it_places_nothing():
    """Wrong inputs whose logits agree: the place is that of the logits, be it of rounding."""
    found = evidence()
    kept(found).x_RLD[1, 9] += 1.0
    kept(found).guided_BLV[1, 9, 2] += 1e-5
    (wrong,) = _judge_tensors(found, {0: None, 1: WrongTensor(2, "x", "why")})
    assert (wrong.position, wrong.delta_f_hat) == (9, 0)


def test_the_tokens_of_a_wrong_tensor_are_both_sides():
    found, _ = swapped(evidence(), 0, 13)
    (wrong,) = _judge_tensors(found.along(), {0: WrongTensor(2, "draw", "why"), 1: None})
    assert wrong.actual == int(found.actual.tokens_BL[0, wrong.position])
    assert wrong.expected == int(found.along().expected.tokens_BL[0, wrong.position])


@pytest.mark.parametrize("by", [2e-6, -2e-6, float("nan")])
def test_the_final_f_hat_is_that_of_the_tokens_to_two_budgets(by: float):
    """Either side may be one budget away from float64."""
    found = evidence(Budget(1e-3, 1e-3, 1e-6, "by hand"))
    due = found.expected.f_hat_BCPP
    error = torch.zeros_like(due)
    error[1, 2, 0, 1] = by
    for factor, wrong in ((0.9, math.isnan(by)), (1.1, True)):
        actual = replace(found.actual, f_hat_BCPP=due + factor * error)
        told = _judge_tensors(replace(found, actual=actual), {0: None, 1: None})
        assert len(told) == wrong
    (first,) = told
    assert (first.component, first.detail) == ("f_hat", "the final f_hat is not that of the decoder's own tokens")
    assert (first.image, first.scale, first.position, first.seed) == (1, 2, -1, 3)
    assert first.delta_f_hat == pytest.approx(abs(1.1 * by), rel=0.1, nan_ok=True)
    # where the image's tensors are wrong already, they say where
    (other,) = _judge_tensors(replace(found, actual=actual), {0: None, 1: WrongTensor(0, "rows", "why")})
    assert other.component == "rows"


def test_a_final_f_hat_that_was_kept_from_an_earlier_scale_says_of_which():
    found = evidence(Budget(1e-3, 1e-3, 1e-6, "by hand"))
    actual = replace(found.actual, f_hat_BCPP=found.actual.f_hat_BCPP.clone())
    actual.f_hat_BCPP[1] = found.expected.shown.f_hat_SBCPP[1, 1]
    (first,) = _judge_tensors(replace(found, actual=actual), {0: None, 1: None})
    why = "the final f_hat is the one after scale 1: what later scales add is missing"
    assert (first.component, first.detail) == ("f_hat", why)


def test_what_differs_is_judged_in_causal_order_and_every_image_by_itself():
    found, _ = swapped(evidence(), 1, 3)
    found = replace(found, actual=replace(found.actual, intermediates=deepcopy(kept(found))))
    with torch.inference_mode():  # as the tensors were made
        kept(found).x_RLD[0, 5:] += 1.0
    found.actual.target_rows = [0, 0]
    judgement = judge(found)
    wrong = [d for d in judgement.defects if d.component != "counts"]
    assert [d.component for d in judgement.defects[len(wrong) :]] == ["counts", "counts"]  # they may follow from it
    places = [(d.scale, d.image, d.position < 0, d.position) for d in wrong]
    assert places == sorted(places)
    assert {(d.image, d.scale) for d in judgement.defects} >= {(1, 1), (0, 2)}
    assert judgement.wrong_tensors == sum(d.component not in ("counts", "draw") for d in judgement.defects)


def test_the_final_f_hat_comes_behind_the_tokens_that_it_is_made_of():
    models, request = tiny(Layout((1,), depth=1)), Request((0,), 3)
    free = sample_sequential(models.target, models.vae, request, models.noise(request))
    other_BL = (free.tokens_BL + 1) % 11
    actual = sample_sequential(models.target, models.vae, request, models.noise(request), other_BL)
    actual = replace(actual, tokens_BL=other_BL, f_hat_BCPP=actual.f_hat_BCPP + 1.0)
    judgement = judge(Evidence(models, request, actual, free, Budget(1e-6, 5e-7, 1e-6, "by hand")), drafts=False)
    assert [(d.component, d.position) for d in judgement.defects] == [("draw", 0), ("f_hat", -1)]


def test_the_numbers_of_a_request_are_drawn_once(monkeypatch: pytest.MonkeyPatch):
    found, _ = swapped(evidence(), 0, 3)
    drawn: list[Request] = []
    whole = type(MODELS).noise
    monkeypatch.setattr(type(MODELS), "noise", lambda pair, request: drawn.append(request) or whole(pair, request))
    assert judge(found).wrong_tokens == 1
    assert drawn == [REQUEST]
    assert judge(replace(found, noise=whole(MODELS, REQUEST))).wrong_tokens == 1
    assert drawn == [REQUEST]  # whose numbers are at hand needs no others


def test_a_trace_of_another_form_is_one_defect_and_nothing_was_compared():
    found = evidence()
    judgement = judge(replace(found, actual=replace(found.actual, tokens_BL=found.actual.tokens_BL[:, :3])))
    assert (judgement.verdict, judgement.draws, len(judgement.defects)) == (Verdict.DEFECT, 0, 1)
    assert (judgement.images, judgement.claims_tokens) == (2, True)


def test_nothing_drafted_proves_nothing_unless_it_is_said():
    found = evidence()
    sequential_trace = replace(found.actual, rounds=[])
    judgement = judge(replace(found, actual=sequential_trace))
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.inconclusive == [
        "nothing was drafted, as far as Trace.rounds shows; pass --sequential for a decoder that never drafts"
    ]
    assert judge(replace(found, actual=sequential_trace), drafts=False).verdict is Verdict.IDENTICAL
    undrafted = [[replace(turn, drafted=0) for turn in turns] for turns in found.actual.rounds]
    assert judge(replace(found, actual=replace(found.actual, rounds=undrafted))).verdict is Verdict.INCONCLUSIVE
    one = [found.actual.rounds[0], undrafted[1]]
    assert judge(replace(found, actual=replace(found.actual, rounds=one))).verdict is Verdict.IDENTICAL


def test_a_judgement_is_read_in_two_lines():
    found = evidence()
    counts = "0 ties, 0 wrong tokens, 0 defects"
    assert str(judge(found)) == f"IDENTICAL: 2 images, 28 draws compared, 28 identical, {counts}"
    judgement = judge(replace(found, actual=replace(found.actual, rounds=[])))
    assert str(judgement).splitlines()[1:] == [f"inconclusive: {judgement.inconclusive[0]}"]
    judgement = judge(replace(found, actual=replace(found.actual, tokens_BL=found.actual.tokens_BL ^ 1)))
    assert str(judgement).splitlines()[1:] == [f"first defect: {judgement.defects[0]}"]


def scope(found: Evidence, contract: Contract) -> Judgement:
    judgement = Judgement(2, draws=28)
    _say_what_was_compared(found, contract, judgement)
    return judgement


@pytest.mark.parametrize("contract", list(Contract))
def test_it_lists_what_was_compared_and_why_the_rest_was_not(contract: Contract):
    tokens = ["tokens"] if contract is Contract.TOKENS else []
    unclaimed = {} if tokens else {"tokens": f"contract {contract.letter} does not claim them"}
    judgement = scope(evidence(), contract)
    assert judgement.compared == [*tokens, "final f_hat", *SHOWN, COUNTS]
    assert (judgement.not_compared, judgement.inconclusive) == (unclaimed, [])
    judgement = scope(hidden(evidence()), contract)
    why = "the decoder shows no Trace.intermediates"
    assert judgement.compared == [*tokens, "final f_hat", COUNTS]
    assert judgement.not_compared == unclaimed | dict.fromkeys(SHOWN, why)
    assert judgement.inconclusive == ([] if tokens else [f"nothing of the target was compared: {why}"])


@pytest.mark.parametrize("name", ["rounds", "target_calls", "target_rows"])
def test_counts_need_all_three_to_be_compared(name: str):
    found = evidence()
    judgement = scope(replace(found, actual=replace(found.actual, **{name: []})), Contract.TOKENS)
    assert COUNTS not in judgement.compared
    assert judgement.not_compared == {COUNTS: f"the trace lacks {name}"}


def test_one_scale_of_one_image_by_the_target_is_something_to_compare():
    alone, most = frozenset(range(3)), frozenset(range(2))
    judgement = scope(replace(evidence(), unverified=(alone, alone)), Contract.QUALITY)
    why = "the draft decided every scale alone"
    assert judgement.compared == ["final f_hat", SHOWN[3], COUNTS]
    unclaimed = {"tokens": "contract C does not claim them"}
    assert judgement.not_compared == unclaimed | dict.fromkeys(("inputs", "rows", "guided logits"), why)
    assert judgement.inconclusive == [f"nothing of the target was compared: {why}"]
    assert scope(replace(evidence(), unverified=(alone, most)), Contract.QUALITY).inconclusive == []


@pytest.mark.parametrize("contract", list(Contract))
def test_a_scale_that_no_pass_of_the_target_decided_has_no_target_tensors(contract: Contract):
    """Contract C alone lets the draft decide; its f_hat is looked at all the same."""
    found = evidence()
    rounds = [
        [replace(turn, target_rows=0 if turn.first else turn.target_rows) for turn in t] for t in found.actual.rounds
    ]
    found = replace(found, actual=replace(found.actual, rounds=rounds, target_calls=[], target_rows=[]))
    first = rounds[0][1].first
    span = MODELS.pyramid.span(first)
    kept(found).rows_RLV[0, span] += 1.0
    verdict = judge(found, contract).verdict
    assert verdict is (Verdict.CONSISTENT if contract is Contract.QUALITY else Verdict.DEFECT)
    kept(found).f_hat_SBCPP[first, 0] += 1.0
    judgement = judge(found, contract)
    assert judgement.verdict is Verdict.DEFECT
    if contract is Contract.QUALITY:
        assert [d.component for d in judgement.defects] == ["f_hat"]


def test_distances_are_means_over_an_image():
    found, _ = swapped(evidence(), 1, 3)
    same, other = image_distances(MODELS, found.actual, found.expected)
    assert (same.tokens, same.f_hat) == (0.0, pytest.approx(0, abs=1e-6))
    a, b = found.actual, found.expected
    assert other.tokens == 1 / 14
    assert other.f_hat == pytest.approx(float((a.f_hat_BCPP[1] - b.f_hat_BCPP[1]).abs().mean()), rel=1e-6)
    pixels = (MODELS.vae.decode(a.f_hat_BCPP[1:]) - MODELS.vae.decode(b.f_hat_BCPP[1:])).abs().mean()
    assert other.pixels == pytest.approx(float(pixels), rel=1e-5)
    assert other.pixels > 0
