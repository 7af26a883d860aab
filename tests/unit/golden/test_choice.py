"""Soft choices: scores are the specification's, and at the edges of what is a soft tie."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.golden import spread
from harness.golden.cases import RecordedCase
from harness.golden.spread import LEAST, TOSSES, Choices, choices, guided, soft_ties, tossed
from harness.protocol.noise import SMOOTH
from harness.protocol.request import Request
from harness.reference.steps import filter_logits, smooth_codes
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
REQUEST = Request((0, 1), 3, cfg=4.0, more_smooth=True)
CASE = RecordedCase("a", "sequential", REQUEST, MODELS)
FILTERS = ({"top_k": 4}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.7})


def with_request(**words: object) -> RecordedCase:
    return replace(CASE, request=replace(REQUEST, **words))


@pytest.mark.parametrize("words", [{}, *FILTERS, {"labels": None, "count": 2, "order": "batch"}])
def test_choices_are_those_of_the_sampler(words: dict[str, object]):
    """Weights of a codebook of unit vectors are the mixture itself."""
    case = with_request(**words)
    guided_BLV = guided(case.exact())
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
    guided_BLV = guided(CASE.exact())
    chosen, moved = choices(CASE, guided_BLV), choices(CASE, guided_BLV + 1)
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


def is_tie(chosen: Choices, reach: float, case: RecordedCase = CASE) -> bool:
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

    monkeypatch.setattr(spread, "filter_logits", drops)
    assert is_tie(by_hand([8.0, 9.0, -50.0]), LEAST / 2, with_request(**words)) is tie
    assert len(seen) == 2 * TOSSES


def test_a_filter_is_tried_with_pairs_of_opposite_moves_as_far_as_rounding_reaches(monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []
    monkeypatch.setattr(spread, "filter_logits", lambda logits_BLV, top_k, top_p: seen.append(logits_BLV) or logits_BLV)
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
    monkeypatch.setattr(spread, "filter_logits", None)
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
