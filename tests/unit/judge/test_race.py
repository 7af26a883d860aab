"""The bound on one tie is tight on both sides: what rounding explains, and nothing beyond it."""

from __future__ import annotations

import math

import pytest
import torch

from harness.judge._ties import (
    MANY_TIES,
    RACE_ROUNDING,
    filter_survivors,
    margin_bound,
    margins_of_differing_tokens,
    unusual_ties,
)
from harness.judge._verdict import Divergence
from harness.protocol._request import Request
from harness.reference._steps import filter_logits
from harness.rounding._budget import Allowance

EVEN = torch.ones(4, dtype=torch.float64)
LOGITS = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)


def margin(token: int, logits=LOGITS, E_V=EVEN, error: float = 0.0, **filters: float) -> float:
    return raced(logits, E_V, token, Request((0,), **filters), error)


def raced(logits_V: torch.Tensor, E_V: torch.Tensor, token: int, request: Request, error: float) -> float:
    """Return the margin of one draw."""
    error_1 = torch.tensor([error], dtype=torch.float64)
    return float(
        margins_of_differing_tokens(logits_V[None], E_V[None], torch.tensor([token]), request, error_1).margin_N
    )


def survive(logits_V: torch.Tensor, request: Request, error: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return who may survive the filter of one draw, and who must."""
    possible_1V, certain_1V = filter_survivors(logits_V[None], request, torch.full((1, 1), error, dtype=torch.float64))
    return possible_1V[0], certain_1V[0]


def test_without_a_filter_it_is_the_lead_of_the_best_score():
    assert [margin(token) for token in range(4)] == [-1.0, 1.0, 2.0, 3.0]
    slowed = torch.tensor([math.e**2, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert [margin(token, E_V=slowed) for token in range(4)] == pytest.approx([1.0, -1.0, 1.0, 2.0])
    assert margin(0, LOGITS[:1], EVEN[:1]) == 0.0  # nobody to lose against


def test_the_logits_are_taken_in_float64():
    near = torch.tensor([1.0, 1.0 + 2.0**-40], dtype=torch.float64)
    assert margin(0, near, EVEN[:2]) == 2.0**-40
    assert margin(1, torch.tensor([1.0, 1.0]), EVEN[:2].float()) == 0.0
    apart = torch.tensor([1.4, 0.0], dtype=torch.float64)  # by just twice the error; float32 rounds it down
    assert margin(1, apart, EVEN[:2], error=0.7, top_k=1) == 1.4


def test_top_k_drops_what_rounding_cannot_bring_back():
    assert [margin(token, top_k=2) for token in range(4)] == [-1.0, 1.0, math.inf, math.inf]
    assert margin(2, top_k=2, error=0.499) == math.inf
    assert margin(2, top_k=2, error=0.5) == 2.0  # the second may fall by 0.5 and the third rise by 0.5: ties stay
    # then the second no longer takes part for certain: only the first must be beaten
    assert margin(2, torch.tensor([3.0, 2.0, 1.9]).double(), EVEN[:3], error=0.06, top_k=2) == pytest.approx(1.1)
    assert margin(1, top_k=1, error=0.6) == 0.0  # nobody takes part for certain but it, or the first


def test_a_certain_rival_must_be_beaten():
    slowed = torch.tensor([1.0, math.e**-5, 1.0, 1.0], dtype=torch.float64)
    assert margin(0, E_V=slowed, top_k=2) == pytest.approx(4.0)  # the second wins the race
    assert margin(0, E_V=slowed, top_k=2, error=0.4) == pytest.approx(4.0)  # and takes part for certain
    assert margin(0, E_V=slowed, top_k=1) == 0.0  # and here it does not


SHARES = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


@pytest.mark.parametrize(("top_p", "left"), [(0.4, 1), (0.6, 2), (0.9, 3), (0.96, 4), (0.99, 4)])
def test_top_p_keeps_the_most_likely_tokens_up_to_that_share(top_p: float, left: int):
    found = [margin(token, SHARES.log(), top_p=top_p) for token in range(4)]
    assert [math.isinf(value) for value in found] == [token >= left for token in range(4)]
    found = [margin(token, SHARES.log() + 500, top_p=top_p) for token in range(4)]  # shares are of differences
    assert [math.isinf(value) for value in found] == [token >= left for token in range(4)]


@pytest.mark.parametrize("top_p", [0.5, 0.8, 0.95])
def test_the_slack_of_top_p_is_that_of_a_float32_sum_and_no_more(top_p: float):
    """At a border either side may be right; beyond it by four units of float32, one a token, nobody is."""
    kept = round({0.5: 1, 0.8: 2, 0.95: 3}[top_p])
    for off, verdict in ((0.0, False), (2.0**-23, False), (-3.9 * 2.0**-23, False), (-4.1 * 2.0**-23, True)):
        value = margin(kept, SHARES.log(), top_p=top_p + off)
        assert math.isinf(value) is verdict, off
    assert math.isinf(margin(kept, SHARES.log(), top_p=top_p - 1e-3, error=1e-4))
    assert not math.isinf(margin(kept, SHARES.log(), top_p=top_p - 1e-3, error=1e-3))


def test_at_a_border_of_top_p_a_rival_is_no_certain_one():
    slowed = torch.tensor([1.0, math.e**-9, 1.0, 1.0], dtype=torch.float64)  # the second wins where it takes part
    assert margin(0, SHARES.log(), slowed, top_p=0.5) == 0.0
    assert margin(0, SHARES.log(), slowed, top_p=0.5 + 1e-4) == pytest.approx(9 + math.log(0.3 / 0.5))


def test_a_filter_of_both_kinds_is_both():
    assert [math.isinf(margin(t, SHARES.log(), top_k=3, top_p=0.6)) for t in range(4)] == [False, False, True, True]
    assert [math.isinf(margin(t, SHARES.log(), top_k=1, top_p=0.99)) for t in range(4)] == [False, True, True, True]


def survivors(logits_V: torch.Tensor, request: Request) -> torch.Tensor:
    return filter_logits(logits_V[None, None], request.top_k, request.top_p)[0, 0] > -torch.inf


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.4}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.7}])
@pytest.mark.parametrize("error", [0.0, 1e-3, 0.05, 0.3])
def test_whatever_rounding_does_to_the_logits_is_foreseen(filters: dict, error: float):
    """What survives a filter of moved logits may survive, and what must survive does."""
    generator, request = torch.Generator().manual_seed(0), Request((0,), **filters)
    for _ in range(20):
        logits_V = 2 * torch.randn(8, generator=generator, dtype=torch.float64)
        possible_V, certain_V = survive(logits_V, request, error)
        seen = [
            survivors(logits_V + error * (2 * torch.rand(8, generator=generator, dtype=torch.float64) - 1), request)
            for _ in range(40)
        ]
        assert not bool((torch.stack(seen).any(0) & ~possible_V).any())
        assert not bool((certain_V & ~torch.stack(seen).all(0)).any())
        if not error:  # nothing is left open
            assert torch.equal(possible_V, certain_V)


def test_equal_logits_at_a_border_may_both_stay_or_go():
    possible_V, certain_V = survive(torch.zeros(4, dtype=torch.float64), Request((0,), top_p=0.6), 0.0)
    assert bool(possible_V.all())  # a sort may put any of them last
    assert not bool(certain_V.any())


def test_the_bound_is_two_errors_and_the_rounding_of_the_race():
    assert margin_bound(0.25) == 0.5 + RACE_ROUNDING
    assert RACE_ROUNDING == 8 * 2.0**-23


def ties(margins: list[float], scale: int = 0) -> list[Divergence]:
    return [Divergence("tie", "", 0, scale=scale, margin=margin) for margin in margins]


def test_many_ties_are_weighed_from_ten_on():
    assert MANY_TIES == 10
    allowed_S = [Allowance(1.0, 0.1, 0.0, ""), Allowance(1.0, 1.0, 0.0, "")]
    wide = ties([0.2] * 9)
    assert unusual_ties(wide, allowed_S) == []
    wide = ties([0.2] * 10)
    assert unusual_ties(wide, allowed_S) == wide
    assert unusual_ties(ties([0.2] * 10, scale=1), allowed_S) == []  # by the rounding of their own scale


def test_a_root_mean_square_of_one_is_usual_and_more_is_not():
    allowed_S = [Allowance(9.0, 1.0 - RACE_ROUNDING, 0.0, "")]
    assert unusual_ties(ties([1.0] * 16), allowed_S) == []
    mixed = ties([1.01] * 16 + [0.0] * 4 + [-50.0] * 4)
    assert unusual_ties(mixed, allowed_S) == []  # close ones, and filter ties, speak for rounding
    assert unusual_ties(ties([2.0, 0.0, 0.0, 0.0] * 4), allowed_S) == []
    mixed = ties([2.0] * 16 + [1.0, 0.5, -50.0])
    assert unusual_ties(mixed, allowed_S) == mixed[:16]


TOP_P = Request((0,), top_p=0.8)
# ascending shares 0.05, 0.15, 0.3, 0.5: with token 1 the sum is 0.2 = 1 - p, where it is dropped
AT_THE_THRESHOLD = (0.05, 0.15, 0.3, 0.5)
SECOND_WINS = torch.tensor([9.0, 1e-3, 9.0, 1.0])  # token 1 wins where it takes part, else token 3


@pytest.mark.parametrize("above", [-1e-5, 0.0, 1e-5])
def test_a_token_whose_share_sits_at_the_threshold_is_no_certain_rival(above: float):
    logits_V = torch.tensor([math.log(share) for share in AT_THE_THRESHOLD], dtype=torch.float64)
    logits_V[1] += above
    for token in (1, 3):
        assert raced(logits_V, SECOND_WINS, token, TOP_P, 1e-3) <= margin_bound(1e-3)
    assert raced(logits_V, SECOND_WINS, 2, TOP_P, 1e-3) > margin_bound(1e-3)
    assert raced(logits_V, SECOND_WINS, 0, TOP_P, 1e-3) == float("inf")


def test_a_token_well_above_the_threshold_is_a_certain_rival():
    logits_V = torch.tensor([math.log(share) for share in (0.05, 0.17, 0.3, 0.48)], dtype=torch.float64)
    assert raced(logits_V, SECOND_WINS, 3, TOP_P, 1e-3) > margin_bound(1e-3)
    assert raced(logits_V, SECOND_WINS, 1, TOP_P, 1e-3) <= margin_bound(1e-3)


def test_one_number_for_all_draws_lies_where_their_logits_do():
    """A law's networks may be on a GPU."""
    there = {"device": "meta"}
    token_N = torch.zeros(2, dtype=torch.int64, **there)
    races = margins_of_differing_tokens(
        torch.zeros(2, 4, **there), torch.ones(2, 4, **there), token_N, Request((0,), top_k=2), 0.1
    )
    assert races.margin_N.device.type == races.bound_N.device.type == "meta"
