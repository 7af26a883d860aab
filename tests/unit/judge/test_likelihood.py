"""Bets against the target's likelihood: what a right decoder can lose, and what a wrong one cannot hide.

On a pyramid of five tokens every outcome can be listed, so that expectations are sums, not estimates.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from itertools import product

import pytest
import torch
from torch import Tensor

from harness.judge._bets import ALPHA, Alternative, TokenSource, Wealth, usual_alternatives
from harness.judge._likelihood import MOST_RATIO, TokensSeen, bet, rows_along
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid
from harness.reference import filter_logits
from harness.reference._steps import VAR
from harness.rounding import joint_budget
from tests.toy import toy_pair

V = 3
MODELS = toy_pair(ScalePyramid((1, 2)), V, 0)
PYRAMID = MODELS.pyramid
OUTCOMES_NL = torch.tensor(list(product(range(V), repeat=PYRAMID.L)))
REQUEST = Request((1,), cfg=1.5)
FILTERED = replace(REQUEST, top_k=2)


def seen_all(request: Request = REQUEST, allowed: float = 1e-6) -> TokensSeen:
    """Return every outcome as an image of one batch, each with its own logits."""
    N = len(OUTCOMES_NL)
    whole = replace(request, labels=request.labels * N, images=(0,) * N, count=N)
    labels_N = torch.tensor(whole.labels)
    rows_RLV, guided_NLV = rows_along(MODELS.target, MODELS, whole, labels_N, OUTCOMES_NL)
    draft_RLV = rows_along(MODELS.draft, MODELS, whole, labels_N, OUTCOMES_NL)[0]
    return TokensSeen(whole, OUTCOMES_NL, rows_RLV, guided_NLV, draft_RLV, (allowed,) * PYRAMID.S, VAR)


def log_law(seen: TokensSeen, moved_NLV: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Return the logarithm of the probability of every outcome."""
    guided_NLV = (seen.guided_BLV + (0 if moved_NLV is None else moved_NLV)).double() / temperature
    logits_NLV = filter_logits(guided_NLV, seen.request.top_k, seen.request.top_p).log_softmax(-1)
    return logits_NLV.gather(2, OUTCOMES_NL[..., None])[..., 0].sum(1)


@lru_cache(maxsize=16)
def won_of_all(request: Request, allowed: float = 1e-6) -> Tensor:
    """Return what every alternative that looks at one image alone wins on every outcome, scale by scale (N, A, S)."""
    return bet(seen_all(request, allowed), PYRAMID, without_before(request)).won_BAS


def without_before(request: Request) -> tuple[Alternative, ...]:
    """Return the alternatives that look at one image alone: outcomes in a list are no images in a row."""
    return tuple(a for a in usual_alternatives(request, V) if a.source is not TokenSource.BEFORE)


@pytest.mark.parametrize("request_", [REQUEST, FILTERED, replace(REQUEST, cfg=0.0), replace(REQUEST, top_p=0.7)])
def test_nothing_is_expected_to_be_won_of_the_targets_law(request_: Request):
    won_NAS = won_of_all(request_)
    law_N = log_law(seen_all(request_)).exp()
    assert law_N.sum().item() == pytest.approx(1)
    won_NAT = torch.cat((won_NAS, won_NAS.sum(-1, keepdim=True)), -1)
    expected_AT = (law_N[:, None, None] * won_NAT.exp()).sum(0)
    assert expected_AT.max().item() <= 1
    # and little is given away: a bound that is too wide would bet on nothing
    assert expected_AT.min().item() > 0.99 or request_.top_p  # at the edge of a nucleus nothing is bet


@pytest.mark.parametrize("allowed", [1e-3, 0.05])
def test_nothing_is_expected_to_be_won_of_a_law_that_rounding_made(allowed: float):
    seen = seen_all(REQUEST, allowed)
    alternatives = without_before(REQUEST)[::3]
    won_NA = bet(seen, PYRAMID, alternatives).won_BAS.sum(-1)
    generator, worst, blind = torch.Generator().manual_seed(0), 0.0, 0.0
    blind_NA = won_NA + seen_bound(seen, alternatives)
    for _ in range(50):
        # the reference's logits are off by `allowed`, and the decoder's the other way
        moved_NLV = 2 * allowed * torch.randn(seen.guided_BLV.shape, generator=generator).sign()
        moved_NLV = moved_of_prefix(moved_NLV)
        law_N = log_law(seen, moved_NLV).exp()
        worst = max(worst, float((law_N @ won_NA.exp()).max()))
        blind = max(blind, float((law_N @ blind_NA.exp()).max()))
    assert worst <= 1
    assert blind > 1  # without the bound such a law would win: it is needed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_is_expected_to_be_won_of_another_kernels_rounding(dtype: torch.dtype):
    """The judge computes in half precision; the decoder is right, and rounds otherwise: as float32 has it."""
    half = MODELS.to("cpu", dtype)
    seen = TokensSeen.along(half, joint_budget(half, compiled=False), seen_all().request, OUTCOMES_NL)
    assert max(seen.allowed_S) > 1e-3
    wide_NLV = TokensSeen.along(
        half.to("cpu"), joint_budget(half, compiled=False), seen.request, OUTCOMES_NL
    ).guided_BLV
    moved_NLV = wide_NLV.double() - seen.guided_BLV.double()
    assert moved_NLV.abs().max() > 1e-4
    law_N, alternatives = log_law(seen, moved_NLV).exp(), without_before(REQUEST)
    assert (law_N @ bet(seen, PYRAMID, alternatives).won_BAS.sum(-1).exp()).max() <= 1
    blind = replace(seen, allowed_S=(0.0,) * PYRAMID.S)
    assert (law_N @ bet(blind, PYRAMID, alternatives).won_BAS.sum(-1).exp()).max() > 1  # it is the budget that helps


def moved_of_prefix(moved_NLV: Tensor) -> Tensor:
    """Make errors equal for outcomes of one prefix: rounding is a function of what the network saw."""
    first_N = (OUTCOMES_NL[:, :1] * V ** torch.arange(1)).sum(1)
    moved_NLV = moved_NLV.clone()
    moved_NLV[:, 0] = moved_NLV[0, 0]
    for token in range(V):
        rows = first_N == token
        moved_NLV[rows, 1:] = moved_NLV[rows][0, 1:]
    return moved_NLV


def seen_bound(seen: TokensSeen, alternatives: tuple[Alternative, ...]) -> Tensor:
    """Return by how much the bound on rounding lowered every image's factor."""
    exact = replace(seen, allowed_S=(0.0,) * PYRAMID.S)
    wide, tight = (bet(each, PYRAMID, alternatives).won_BAS.sum(-1) for each in (seen, exact))
    return tight - wide


def test_mean_and_variance_are_those_under_the_alternative():
    """Of the last image's prefix, scale by scale: over all its outcomes they are sums, too."""
    seen, hot = seen_all(), Alternative("the temperature were 1.2", temperature=1.2)
    bets = bet(seen, PYRAMID, (hot,))
    law_N = log_law(seen, temperature=1.2).exp()
    shares_N = (OUTCOMES_NL[:, 0] == OUTCOMES_NL[-1, 0]).double()
    mean = variance = 0.0
    for si, share_N in enumerate((law_N, law_N * shares_N)):
        won_N, weight_N = bets.won_BAS[:, 0, si], share_N / share_N.sum()
        mean += float(weight_N @ won_N)
        variance += float(weight_N @ won_N.square() - (weight_N @ won_N) ** 2)
    assert bets.mean_A.item() == pytest.approx(mean, rel=1e-3)
    assert bets.variance_A.item() == pytest.approx(variance, rel=1e-3)


def simulated(seen: TokensSeen, law_N: Tensor, runs: int, images: int, alpha: float) -> int:
    """Return how many of many runs are accused."""
    alternatives = without_before(seen.request)
    won_NAS = won_of_all(replace(seen.request, labels=(1,), images=None))
    won_NT = torch.cat((won_NAS, won_NAS.sum(-1, keepdim=True)), -1)
    wealth = Wealth(alternatives, PYRAMID.S, alpha=alpha)
    drawn = torch.multinomial(law_N, runs * images, replacement=True, generator=torch.Generator().manual_seed(1))
    accused = 0
    for run in drawn.view(runs, images):
        log_wealth = (won_NT[run].cumsum(0) + wealth.stake_AT).flatten(1).logsumexp(1)
        accused += bool((log_wealth >= wealth.goal).any())
    return accused


def test_a_right_decoder_is_accused_as_rarely_as_it_is_said():
    seen = seen_all()
    assert simulated(seen, log_law(seen).exp(), runs=200, images=1000, alpha=1e-2) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("request_", [REQUEST, FILTERED])
def test_a_thousand_right_decoders_are_accused_as_rarely_as_it_is_said(request_: Request):
    """Long: a million images."""
    seen = seen_all(request_)
    assert simulated(seen, log_law(seen).exp(), runs=1000, images=1000, alpha=1e-3) <= 4


def test_a_wrong_decoder_is_accused_always():
    seen = seen_all()
    assert simulated(seen, log_law(seen, temperature=1.3).exp(), runs=50, images=1000, alpha=ALPHA) == 50


def test_a_token_that_the_filter_drops_ends_it_at_once():
    seen = seen_all(FILTERED)
    alternatives = usual_alternatives(FILTERED, V)
    least_N = seen.guided_BLV[:, 0].argmin(-1)
    bets = bet(seen, PYRAMID, alternatives)
    assert {row for row, position in bets.forbidden if position == 0} == set(
        torch.nonzero(OUTCOMES_NL[:, 0] == least_N).flatten().tolist()
    )
    wealth = Wealth(alternatives, PYRAMID.S)
    assert not wealth.is_lost
    wealth.take(bets)
    assert wealth.is_lost


def test_at_the_edge_of_a_filter_nothing_is_bet_and_nothing_forbidden():
    seen = seen_all(FILTERED, allowed=100.0)  # any token may be among the first two
    bets = bet(seen, PYRAMID, without_before(FILTERED))
    assert not bets.forbidden
    assert bets.won_BAS.count_nonzero() == 0


def one_image(tokens_L: Tensor, before_L: Tensor) -> TokensSeen:
    """Return an image after another one."""
    seen = seen_all()
    rows = [int((each == OUTCOMES_NL).all(1).nonzero()) for each in (before_L, tokens_L)]
    both = rows + [len(OUTCOMES_NL) + row for row in rows]
    request = replace(seen.request, labels=(1, 1), images=(0, 1), count=2)
    return replace(
        seen, request=request, tokens_BL=OUTCOMES_NL[rows], rows_RLV=seen.rows_RLV[both],
        guided_BLV=seen.guided_BLV[rows], draft_RLV=seen.draft_RLV[both],
    )  # fmt: skip


def test_an_image_that_is_the_one_before_wins_and_another_one_does_not():
    again = (Alternative("again", share=0.5, source=TokenSource.BEFORE),)
    same = bet(one_image(OUTCOMES_NL[5], OUTCOMES_NL[5]), PYRAMID, again).won_BAS.sum(-1)[:, 0]
    other = bet(one_image(OUTCOMES_NL[5], OUTCOMES_NL[-1]), PYRAMID, again).won_BAS.sum(-1)[:, 0]
    assert same[0] == pytest.approx(0, abs=1e-4)  # the first image has none before it
    assert same[1] > 1 > other[1]


def test_the_wealth_names_what_won_and_where():
    seen = seen_all()
    alternatives = (Alternative("hot", temperature=1.5), Alternative("cold", temperature=0.5))
    bets = bet(seen, PYRAMID, alternatives)
    only = torch.zeros_like(bets.won_BAS)
    only[:, 1, 1] = 0.2  # cold, at scale 1
    wealth = Wealth(alternatives, PYRAMID.S)
    wealth.take(replace(bets, won_BAS=only))
    assert wealth.best() == (alternatives[1], 1)  # the others add nothing
    only[:, 1, 0] = 0.1
    wealth = Wealth(alternatives, PYRAMID.S)
    wealth.take(replace(bets, won_BAS=only))
    assert wealth.best() == (alternatives[1], -1)
    only[:, 1, 0] = 0.05  # of 0.25: chance at the other scale, and four fifths at this one
    wealth = Wealth(alternatives, PYRAMID.S)
    wealth.take(replace(bets, won_BAS=only))
    assert wealth.best() == (alternatives[1], 1)


def test_a_wealth_that_was_reached_once_counts_though_it_is_lost_again():
    seen, alternatives = seen_all(), (Alternative("hot", temperature=1.5),)
    bets = bet(seen, PYRAMID, alternatives)
    up_and_down = torch.zeros_like(bets.won_BAS)
    up_and_down[:50] = 1.0
    up_and_down[50:100] = -1.0
    wealth = Wealth(alternatives, PYRAMID.S)
    wealth.take(replace(bets, won_BAS=up_and_down))
    assert wealth.log_wealth < 1
    assert wealth.is_lost


def test_the_stakes_are_one():
    alternatives = without_before(REQUEST)
    assert Wealth(alternatives, 3).stake_AT.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert Wealth(alternatives, 3).log_wealth == pytest.approx(0, abs=1e-12)


def test_looks_share_alpha():
    alternatives = (Alternative("hot", temperature=1.5),)
    assert Wealth(alternatives, 2, looks=8).goal - Wealth(alternatives, 2).goal == pytest.approx(math.log(8))


def test_images_to_find_are_those_that_find_nine_in_ten():
    seen = seen_all()
    hot = Alternative("the temperature were 1.3", temperature=1.3)
    wealth = Wealth((hot,), PYRAMID.S)
    law_N = log_law(seen, temperature=1.3).exp()
    won_NS = bet(seen, PYRAMID, (hot,)).won_BAS[:, 0]
    drawn = torch.multinomial(law_N, 64, replacement=True, generator=torch.Generator().manual_seed(2)).tolist()
    for row in drawn:
        wealth.take(bet(alone(seen, row), PYRAMID, (hot,)))
    needed = wealth.images_to_find()[hot]
    assert 10 < needed < 2000
    runs = torch.multinomial(law_N, 400 * int(needed), replacement=True, generator=torch.Generator().manual_seed(3))
    won_RN = won_NS.sum(-1)[runs].view(400, -1).cumsum(1) + wealth.stake_AT[0, -1]
    share = (won_RN >= wealth.goal).any(1).double().mean().item()
    assert 0.8 < share < 0.99


def alone(seen: TokensSeen, row: int) -> TokensSeen:
    """Return one outcome as a batch."""
    N = len(OUTCOMES_NL)
    return replace(
        seen, request=replace(REQUEST, images=(0,)), tokens_BL=OUTCOMES_NL[row : row + 1],
        rows_RLV=seen.rows_RLV[[row, N + row]], guided_BLV=seen.guided_BLV[row : row + 1],
        draft_RLV=seen.draft_RLV[[row, N + row]],
    )  # fmt: skip


def test_without_images_nothing_is_known():
    alternatives = (Alternative("hot", temperature=1.5),)
    assert Wealth(alternatives, 2).images_to_find() == {alternatives[0]: math.inf}


def test_no_factor_is_above_the_most():
    rare = Alternative("leak", share=0.9, source=TokenSource.UNIFORM)
    seen = seen_all()
    sharp = replace(seen, guided_BLV=seen.guided_BLV * 1000)
    won_N = bet(sharp, PYRAMID, (rare,)).won_BAS[:, 0, 0]
    assert won_N.max().item() <= math.log(MOST_RATIO)
