"""Tokens against the reference's draws: what is excused, what is not, and what is counted.

Long, since every case bends the same two decodes.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from harness.judge import _ties as many_ties
from harness.judge import _tokens as tokens
from harness.judge._components import WrongTensor
from harness.judge._decode import judge
from harness.judge._evidence import Evidence
from harness.judge._suspects import GREEDY
from harness.judge._ties import ALARM, RACE_ROUNDING, THETAS, Tail, costs_N3, log_e, surprise_N
from harness.judge._verdict import Divergence, Judgement, Verdict
from harness.protocol._decoder import Contract, Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import TOKEN
from harness.reference._steps import filter_logits
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import Budget
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
REQUEST = Request((0, 1), seed=3, cfg=4.0)
TIGHT = Budget(1e-6, 5e-7, 1e-6, "by hand")


@lru_cache(maxsize=8)
def _decoded(request: Request, greedy: bool) -> tuple[Trace, Trace]:
    policy = "greedy" if greedy else "coupled"
    free = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request), greedy=greedy)
    return build_decoder(MODELS, Settings(2, policy=policy)).decode(request, MODELS.noise(request)), free


def evidence(budget: Budget = TIGHT, request: Request = REQUEST, greedy: bool = False) -> Evidence:
    actual, free = deepcopy(_decoded(request, greedy))
    return Evidence(MODELS, request, actual, free, budget, greedy)


def scores(found: Evidence, image: int, position: int) -> torch.Tensor:
    """Return every token's score in the race at one position of the free run, the best one first to be subtracted."""
    request, si = found.request, MODELS.pyramid.level_of(position)
    guided_V = found.expected.intermediates.guided_BLV[image, position].double()
    left_V = filter_logits(guided_V[None, None], request.top_k, request.top_p)[0, 0]
    if found.greedy:
        return left_V
    E_V = MODELS.noise(request).exponential(si, TOKEN, "test")[image, position - MODELS.pyramid.begin(si)]
    return left_V - E_V.double().log()


def swapped(found: Evidence, image: int, position: int, rank: int = 1) -> tuple[Evidence, float]:
    """Let the decoder draw the token of `rank` at one position, its tensors those of its own prefix; return its gap."""
    score_V = scores(found, image, position)
    order = score_V.argsort(descending=True)
    tokens_BL = found.actual.tokens_BL.clone()
    tokens_BL[image, position] = order[rank]
    request, greedy = found.request, found.greedy
    forced = sample_sequential(
        MODELS.target, MODELS.vae, request, MODELS.noise(request), forced_BL=tokens_BL, greedy=greedy
    )
    actual = replace(
        found.actual, tokens_BL=tokens_BL, f_hat_BCPP=forced.f_hat_BCPP, intermediates=forced.intermediates,
        law_BLV=None,  # what it was drawn from instead nobody says
    )  # fmt: skip
    return replace(found, actual=actual), float(score_V[order[0]] - score_V[order[rank]])


def hidden(found: Evidence) -> Evidence:
    return replace(found, actual=replace(found.actual, intermediates=None))


def counts(judgement: Judgement) -> tuple[int, ...]:
    names = ("draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects", "unlisted")
    return tuple(judgement.count(name) for name in names)


def test_a_right_decode_is_identical():
    judgement = judge(evidence())
    assert judgement.verdict is Verdict.IDENTICAL
    assert counts(judgement) == (28, 28, 0, 0, 0, 0, 0, 0)
    assert len(judgement.surprise) == 3  # scales
    assert all(weight <= 0 for weights in judgement.surprise for weight in weights)  # what its draws cost
    wider = judge(evidence(Budget(0.05, 0.02, 1e-6, "by hand"))).surprise  # so that a rival is within reach
    assert all(sum(of) < 0 for of in zip(*wider, strict=True))


def test_the_last_position_may_differ_by_a_certified_tie():
    """Another token at the last position changes nothing behind it: the budget alone decides."""
    found, gap = swapped(evidence(), 1, 13)
    wide = Budget(gap / 2 / 9, gap, 1e-6, "by hand")  # cfg 4 at the last scale: 9 errors of a row each
    judgement = judge(hidden(replace(found, budget=replace(wide, rows=1.0001 * wide.rows))))
    assert judgement.verdict is Verdict.TIE
    assert counts(judgement) == (28, 27, 1, 0, 0, 0, 0, 0)
    (tie,) = judgement.ties
    assert (tie.component, tie.detail) == ("tie", "within the error budget")
    assert (tie.seed, tie.image, tie.label, tie.scale, tie.position) == (3, 1, 1, 2, 13)
    assert tie.actual == int(found.actual.tokens_BL[1, 13]) != tie.expected
    assert tie.margin == pytest.approx(gap, abs=1e-5)
    assert tie.bound == pytest.approx(gap, rel=1e-3)
    judgement = judge(hidden(replace(found, budget=replace(wide, rows=0.999 * wide.rows))))
    assert judgement.verdict is Verdict.DEFECT
    assert counts(judgement) == (28, 27, 0, 1, 0, 0, 1, 0)
    assert judgement.defects[0].component == "unknown"
    said = "the decoder exposes no intermediates; fill Trace.intermediates to locate it"
    assert judgement.defects[0].detail == said


PLACES = [(0, 0, 1), (0, 3, 1), (0, 9, 2), (1, 0, 1), (1, 3, 1), (1, 9, 1)]


@pytest.mark.parametrize(("image", "position", "rank"), PLACES)
def test_a_wrong_draw_from_right_logits_is_no_tie_however_wide_the_budget(image: int, position: int, rank: int):
    """The decoder's own numbers, which it shows, give another token; of its rank, not the draft's own."""
    found, gap = swapped(evidence(), image, position, rank)
    wide = Budget(gap, gap, 1e-6, "by hand")
    judgement = judge(replace(found, budget=wide))
    assert judgement.verdict is Verdict.DEFECT
    first = judgement.defects[0]
    assert (first.component, first.image, first.position) == ("draw", image, position)
    assert first.detail == "guided logits agree, so filter, draw or noise is wrong"
    assert (first.margin, first.bound) == (pytest.approx(gap, abs=1e-4), RACE_ROUNDING)  # of the race of its own logits
    assert (first.delta_logits, first.delta_f_hat) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))
    assert judge(hidden(replace(found, budget=wide))).verdict is Verdict.TIE  # unseen, the budget must excuse it


def test_a_wrong_draw_that_is_the_drafts_own_is_a_draft_that_was_kept():
    found, gap = swapped(evidence(), 0, 9)
    (first,) = judge(replace(found, budget=Budget(gap, gap, 1e-6, "by hand"))).defects
    assert (first.component, first.position) == ("accept", 9)
    assert first.detail == "the draft's own token is accepted, and is not the target's draw"


def test_a_decoders_own_race_decides_where_it_shows_its_logits():
    """Its logits, within the budget of float64, do prefer its token: that is what a tie is."""
    found, gap = swapped(evidence(), 0, 13)
    token, other = int(found.actual.tokens_BL[0, 13]), int(found.along().expected.tokens_BL[0, 13])
    kept = found.actual.intermediates
    for name, weight in (("rows_RLV", 0.2), ("guided_BLV", 1.0)):  # t = 4: guided logits move five times as far
        tensor = getattr(kept, name).clone()
        tensor[0, 13, token] += 0.51 * weight * gap
        tensor[0, 13, other] -= 0.51 * weight * gap
        setattr(kept, name, tensor)
    judgement = judge(replace(found, budget=Budget(0.52 / 9 * gap, gap, 1e-6, "by hand")))
    assert (judgement.verdict, counts(judgement)[:4]) == (Verdict.TIE, (28, 27, 1, 0))
    assert judgement.ties[0].delta_logits == pytest.approx(0.51 * gap, rel=1e-3)
    assert judgement.ties[0].delta_f_hat == pytest.approx(0, abs=1e-5)
    # the margin is within twice what is allowed, its logits are not within once
    judgement = judge(replace(found, budget=Budget(0.505 / 9 * gap, gap, 1e-6, "by hand")))
    assert (judgement.verdict, judgement.wrong_tokens) == (Verdict.DEFECT, 1)


def test_the_references_own_logits_must_be_within_the_budget_of_float64():
    found, gap = swapped(evidence(), 1, 13)
    wide = Budget(gap, gap, 1e-6, "by hand")
    found = hidden(replace(found, budget=wide)).along()
    assert _judged_tokens(found).verdict is Verdict.TIE
    guided_BLV = found.expected.intermediates.guided_BLV.clone()
    guided_BLV[1, 13, 0] += 10 * gap
    kept = replace(found.expected.intermediates, guided_BLV=guided_BLV)
    assert _judged_tokens(replace(found, expected=replace(found.expected, intermediates=kept))).wrong_tokens == 1


def _judged_tokens(found: Evidence, *wrong: WrongTensor | None) -> Judgement:
    judgement = Judgement(2, draws=28)
    differ_BL = found.actual.tokens_BL != found.expected.tokens_BL
    tokens.judge_tokens(found, dict(enumerate(wrong or (None, None))), differ_BL, judgement)
    return judgement


def test_a_wrong_tensor_at_or_before_its_scale_names_the_component_and_one_behind_it_does_not():
    found, _ = swapped(evidence(), 0, 3)
    along = found.along()
    for scale, component in ((0, "cache"), (1, "cache"), (2, "draw")):
        judgement = _judged_tokens(along, WrongTensor(scale, "cache", "why"), WrongTensor(0, "query", "other"))
        assert [d.component for d in judgement.defects] == [component]


def test_a_wrong_token_is_counted_once_and_what_follows_it_is_judged_on_its_own_prefix():
    found, _ = swapped(evidence(), 0, 0)
    judgement = judge(found)  # scales 1 and 2 are those of the reference on the decoder's prefix, but for its tokens
    assert judgement.draws == judgement.identical + judgement.count("ties") + judgement.wrong_tokens
    assert judgement.wrong_tokens >= 1
    assert judgement.defects[0].position == 0


def test_past_the_last_record_wrong_tokens_are_counted_without_one(monkeypatch: pytest.MonkeyPatch):
    assert tokens.MOST_RECORDS == 1000
    monkeypatch.setattr(tokens, "MOST_RECORDS", 5)
    found = evidence()
    found.actual.tokens_BL[:] = (found.actual.tokens_BL + 1) % 11
    judgement = judge(hidden(found))
    assert judgement.verdict is Verdict.DEFECT
    wrong = judgement.wrong_tokens
    assert wrong > 20
    assert counts(judgement)[:4] == (28, 28 - wrong, 0, wrong)
    described = [d for d in judgement.defects if d.position >= 0]
    assert (len(described), judgement.unlisted) == (5, wrong - 5)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("request_", [REQUEST, replace(REQUEST, top_k=3), replace(REQUEST, top_p=0.7, cfg=1.5)])
def test_the_costs_are_those_of_the_references_races(request_: Request, greedy: bool):
    found = evidence(request=request_, greedy=greedy)
    costs_SB3 = many_ties.costs_of_draws(found)
    assert costs_SB3.shape == (3, 2, 3)
    noise = MODELS.noise(request_)
    for si in MODELS.pyramid:
        guided_BlV = found.expected.intermediates.guided_BLV[:, MODELS.pyramid.span(si)]
        score_BlV = filter_logits(guided_BlV, request_.top_k, request_.top_p)
        if not greedy:
            score_BlV = score_BlV - noise.exponential(si, TOKEN, "test").log()
        for image in (0, 1):
            assert (
                costs_SB3[si, image].tolist()
                == costs_N3(score_BlV[image], Tail.of(found.allowance(si))).sum(0).tolist()
            )


def test_costs_that_somebody_has_already_are_taken():
    costs_SB3 = torch.arange(18, dtype=torch.float64).reshape(3, 2, 3)
    assert _judged_tokens(replace(evidence(), costs_SB3=costs_SB3)).surprise == (-costs_SB3.sum(1)).tolist()


def test_one_tokens_logits_beyond_the_budget_excuse_no_other_ones_and_accuse_none():
    """Two ties; at one of them the reference's own logits are off."""
    found, gap = swapped(evidence(), 1, 13)
    found, other = swapped(found, 0, 13)
    wide = max(gap, other)
    found = hidden(replace(found, budget=Budget(wide, wide, 1e-6, "by hand"))).along()
    assert len(_judged_tokens(found).ties) == 2
    kept = found.expected.intermediates
    kept.guided_BLV = kept.guided_BLV.clone()
    kept.guided_BLV[1, 13, 0] += 10 * wide
    judgement = _judged_tokens(found)
    assert ([tie.image for tie in judgement.ties], [wrong.image for wrong in judgement.defects]) == ([0], [1])


def test_a_wrong_tokens_record_holds_both_tokens_the_reason_and_how_far_f_hat_is():
    found, _ = swapped(evidence(), 0, 3)
    along = found.along()
    kept = along.actual.intermediates
    kept.f_hat_SBCPP = kept.f_hat_SBCPP.clone()
    kept.f_hat_SBCPP[1, 0, 0, 0, 0] += 0.25
    (wrong,) = _judged_tokens(along, WrongTensor(1, "cache", "why"), None).defects
    assert (wrong.component, wrong.detail, wrong.label) == ("cache", "why", 0)
    assert (wrong.actual, wrong.expected) == (int(found.actual.tokens_BL[0, 3]), int(along.expected.tokens_BL[0, 3]))
    assert wrong.actual != wrong.expected
    assert wrong.delta_f_hat == pytest.approx(0.25, abs=1e-4)


def test_drawn_labels_are_told_of_a_wrong_token():
    request = Request(None, 3, cfg=4.0, count=2, order="batch")
    found = evidence(request=request)
    found.actual.tokens_BL[1, 13] = (found.actual.tokens_BL[1, 13] + 1) % MODELS.target.config.V
    drawn = MODELS.noise(request).labels(MODELS.target.config.classes).tolist()
    assert [each.label for each in _judged_tokens(hidden(found)).defects] == [drawn[1]]


def test_greedy_tokens_are_raced_without_numbers():
    found, gap = swapped(evidence(greedy=True), 0, 13)
    (wrong,) = judge(hidden(found)).defects
    assert wrong.margin == pytest.approx(gap, abs=1e-4)
    wide = replace(found, budget=Budget(gap, gap, 1e-6, "by hand"))
    assert judge(hidden(wide)).verdict is Verdict.TIE
    first = judge(wide).defects[0]
    assert (first.component, first.detail) == GREEDY


@pytest.mark.parametrize(
    ("contract", "verdict"),
    [(Contract.TOKENS, "DEFECT"), (Contract.LAW, "CONSISTENT"), (Contract.QUALITY, "CONSISTENT")],
)
def test_tokens_are_judged_where_they_are_claimed(contract: Contract, verdict: str):
    found, _ = swapped(evidence(), 0, 3)
    judgement = judge(found, contract)
    assert judgement.verdict.value == verdict
    wrong = 28 - judgement.identical
    assert (judgement.unclaimed, judgement.wrong_tokens) == ((0, wrong) if verdict == "DEFECT" else (wrong, 0))
    assert len(judgement.distances) == (0 if verdict == "DEFECT" else 2)


def test_together_ties_of_one_scale_may_be_more_than_rounding():
    """Plant: margins that single ties may have, at scale 2 alone, in a mode that rounds far less as a rule."""
    found = evidence()
    for position in range(5, 14):
        for image in (0, 1):
            order = scores(found, image, position).argsort(descending=True)
            found.actual.tokens_BL[image, position] = order[1]
    heavy = Budget(1.0, 1e-3, 1e9, "by hand")  # the largest error excuses everything, the usual one nothing
    judgement = judge(hidden(replace(found, budget=heavy)), drafts=False)
    assert judgement.verdict is Verdict.DEFECT
    assert {d.component for d in judgement.defects if d.position >= 0} == {"unknown"}
    said = {d.detail for d in judgement.defects if d.position >= 0}
    assert said == {"one of many ties whose margins together are beyond rounding"}
    assert judgement.wrong_tokens + len(judgement.ties) + judgement.identical == 28
    assert ALARM == 1e-6


def together(ties: list[Divergence], costs: list[list[float]], budget: Budget) -> Judgement:
    """Weigh ties of the first image, whose draws cost so much by scale and θ; those of the other cost nothing."""
    judgement = Judgement(2, ties=list(ties))
    costs_SB3 = torch.zeros(3, 2, 3, dtype=torch.float64)
    costs_SB3[:, 0] = torch.tensor(costs)
    many_ties.weigh_decode(evidence(budget), judgement, costs_SB3, [0] * len(ties))
    return judgement


def test_every_scale_weighs_its_own_ties_against_its_own_costs():
    """Scale 2 has evidence beyond its costs, scale 1 as much and higher costs, a filter tie weighs nothing."""
    budget = Budget(6.0, 1.0, 0.0, "by hand")  # cfg 4: 1, 5 and 9 errors of a row
    tails = [Tail.of(evidence(budget).allowance(si)) for si in MODELS.pyramid]
    level = math.log(3 / ALARM)  # three looks
    usual = [evidence(budget).allowance(si).logits_rms for si in MODELS.pyramid]

    def tie(si: int, share: float, position: int = 0) -> Divergence:
        return Divergence("tie", "fine", 3, 0, scale=si, position=position, margin=share * usual[si])

    ties = [tie(1, 8.0), tie(2, 8.0), tie(2, 0.01, 6), tie(2, -1.0, 7), tie(2, 0.0, 8)]
    margins = [torch.tensor([t.margin for t in ties if t.scale == si]).double() for si in MODELS.pyramid]
    weighed = torch.stack(
        [surprise_N(margins[si], tails[si]).sum() * margins[si].new_tensor(THETAS) for si in range(3)]
    )
    free = [[0.0] * 3 for _ in range(3)]
    judgement = together(ties, free, budget)
    assert judgement.surprise == [pytest.approx(of, rel=1e-12) for of in weighed.tolist()]
    assert float(log_e(weighed).max()) < level  # one tie alone may be so wide
    assert (judgement.defects, judgement.ties) == ([], ties)
    for low, alarm in ((0.999, False), (1.001, True)):
        gain = low * level - float(log_e(weighed[2]))
        costs = [[0.0] * 3, [0.0] * 3, [-gain] * 3]  # as if its draws had been worth that much
        judgement = together(ties, costs, budget)
        assert [t.position for t in judgement.defects] == ([0, 6] if alarm else [])
        assert all(t.component == "unknown" and t.scale == 2 for t in judgement.defects)
        assert len(judgement.ties) == (3 if alarm else 5)


def test_ties_that_are_too_wide_and_too_many_are_rejected_once():
    budget = Budget(90.0, 1.0, 0.0, "by hand")
    usual = evidence(budget).allowance(0).logits_rms
    ties = [Divergence("tie", "fine", 3, b % 2, scale=0, position=0, margin=50.0 * usual + b) for b in range(12)]
    judgement = together(ties, [[-1e3] * 3] * 3, budget)
    assert (len(judgement.defects), judgement.ties) == (12, [])
    said = "one of many ties whose margins together are beyond rounding"
    assert {d.detail for d in judgement.defects} == {said}
