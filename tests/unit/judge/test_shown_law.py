"""Loss in nats: on a pyramid of five tokens every outcome is listed, so that expectations are sums, not estimates."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from harness.judge import judge
from harness.judge._bets import HELD, Bets, TokenSource, Wealth, gains, usual_alternatives
from harness.judge._evidence import Evidence
from harness.judge._likelihood import TokensSeen, bet, rows_along
from harness.judge._shown_law import nats_lost, nats_of, undrawn
from harness.protocol import Contract, Request, Settings
from harness.protocol.pyramid import ScalePyramid
from harness.reference import filter_logits
from harness.reference.sequential import sample_sequential
from harness.rounding import joint_budget
from harness.speculative.sampler import build_decoder
from tests.toy import toy_pair

V = 3
MODELS = toy_pair(ScalePyramid((1, 2)), V, 0, apart=0.5)
PYRAMID = MODELS.pyramid
OUTCOMES_NL = torch.tensor(list(product(range(V), repeat=PYRAMID.L)))
N = len(OUTCOMES_NL)
ALL = Request((1,) * N, cfg=1.5, images=(0,) * N, count=N)
SOME = Request((1, 0, 1, 0, 1, 0), cfg=1.5)
EXACT = (0.0,) * PYRAMID.S


def law_of(network, request: Request = ALL) -> tuple[Tensor, Tensor]:
    """Return a network's law along every outcome, and its logits."""
    guided_NLV = rows_along(network, MODELS, request, torch.tensor(request.labels), OUTCOMES_NL)[1]
    return filter_logits(guided_NLV, request.top_k, request.top_p).double().softmax(-1), guided_NLV


def image_probs(law_NLV: Tensor) -> Tensor:
    return law_NLV.gather(2, OUTCOMES_NL[..., None])[..., 0].prod(1)


def true_loss() -> float:
    q_N, p_N = (image_probs(law_of(network)[0]) for network in (MODELS.draft, MODELS.target))
    return float((q_N * (q_N / p_N).log()).sum())


def test_the_mean_is_that_of_log_q_over_p():
    law_NLV, (_, guided_NLV) = law_of(MODELS.draft)[0], law_of(MODELS.target)
    lost_NS, most_NS = nats_lost(law_NLV, guided_NLV, ALL, EXACT, PYRAMID)
    assert torch.equal(lost_NS, most_NS)
    assert float(image_probs(law_NLV) @ lost_NS.sum(1)) == pytest.approx(true_loss(), rel=1e-9)
    assert float(lost_NS.min()) >= 0
    assert true_loss() > 0.1


def test_a_scale_that_is_the_targets_loses_nothing():
    law_NLV, guided_NLV = law_of(MODELS.target)
    span = PYRAMID.draws.span(1)
    law_NLV[:, span] = law_of(MODELS.draft)[0][:, span]
    lost_NS, most_NS = nats_lost(law_NLV, guided_NLV, ALL, (1e-6, 1e-6), PYRAMID)
    torch.testing.assert_close(most_NS, lost_NS, rtol=0, atol=1e-9)
    assert float(lost_NS[:, 0].max()) == 0
    assert float(lost_NS[:, 1].min()) > 0


@pytest.mark.parametrize("changed", [{}, {"top_k": 2}, {"top_p": 0.8}])
def test_rounding_costs_nothing_and_another_law_does(changed: dict[str, float]):
    request = replace(ALL, **changed)
    guided_NLV = law_of(MODELS.target)[1]
    rounded_NLV = guided_NLV.bfloat16().float()
    allowed = (float((rounded_NLV - guided_NLV).abs().max()),) * PYRAMID.S
    law_NLV = filter_logits(rounded_NLV, request.top_k, request.top_p).softmax(-1)
    exact_NS = nats_lost(law_NLV, guided_NLV, request, EXACT, PYRAMID)[0]
    least_NS, most_NS = nats_lost(law_NLV, guided_NLV, request, allowed, PYRAMID)
    assert float(least_NS.max()) == 0
    assert float(exact_NS.max()) > 0
    assert torch.equal(most_NS, exact_NS)  # it is not forgotten
    other_NLV = filter_logits(guided_NLV / 1.5, request.top_k, request.top_p).softmax(-1)
    assert float(nats_lost(other_NLV, guided_NLV, request, allowed, PYRAMID)[0].max()) > 0.01


def test_a_token_that_the_target_never_draws_costs_infinitely_much():
    filtered = replace(ALL, top_k=2)
    law_NLV, guided_NLV = law_of(MODELS.target)
    assert bool(nats_lost(law_NLV, guided_NLV, filtered, EXACT, PYRAMID)[0].isinf().all())
    narrow_NLV = law_of(MODELS.target, filtered)[0]
    assert float(nats_lost(narrow_NLV, guided_NLV, ALL, EXACT, PYRAMID)[0].max()) < 2  # the other way round it does not


def test_what_bets_win_is_no_more_than_the_loss():
    """First image: a sum over its outcomes; the second one's bets know the first, and are fair bets, too."""
    alone = [each for each in usual_alternatives(ALL, V) if each.source is not TokenSource.BEFORE]
    seen = TokensSeen.along(MODELS, joint_budget(MODELS, compiled=False), ALL, OUTCOMES_NL)
    won_NAS = bet(seen, PYRAMID, alone).won_BAS
    q_N = image_probs(law_of(MODELS.draft)[0])
    first_N = torch.stack([gains(won_NAS[n : n + 1])[0, -1] for n in range(N)])
    assert float(q_N @ first_N) < true_loss()
    second = sum(
        float(q_N[a] * q_N @ torch.stack([gains(won_NAS[[a, n]])[1, -1] for n in range(N)])) for a in range(0, N, 40)
    ) / float(q_N[::40].sum())
    assert float(q_N @ first_N) < second < true_loss()
    assert float(first_N.min()) >= torch.tensor(0.1).log()


def test_gains_add_up_to_the_wealth():
    won_NAS = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wealth = Wealth(usual_alternatives(ALL, V)[:3], 2)
    wealth.take(Bets(won_NAS, torch.zeros(3), torch.zeros(3)))
    without_held_N = ((gains(won_NAS)[:, -1].exp() - HELD) / (1 - HELD)).log()
    assert float(without_held_N.sum()) == pytest.approx(wealth.log_wealth, abs=1e-9)


def test_a_draw_from_the_law_that_is_shown_and_one_from_another():
    trace = build_decoder(MODELS, Settings(2, policy="kl:0.05")).decode(SOME, MODELS.noise(SOME))
    law_BLV, noise = trace.law_BLV, MODELS.noise(SOME)
    assert law_BLV is not None
    assert undrawn(law_BLV, trace.tokens_BL, noise, PYRAMID) is None
    assert undrawn(law_BLV.bfloat16(), trace.tokens_BL, noise, PYRAMID) is None
    other_BL = trace.tokens_BL.clone()
    other_BL[2, 3] = (other_BL[2, 3] + 1) % V
    row, draw, why = undrawn(law_BLV, other_BL, noise, PYRAMID)
    assert (row, draw) == (2, 3)
    assert why.startswith("under the law that is shown the token loses its race by ")
    for none in (law_BLV * 1.01, -law_BLV, law_BLV * torch.nan):
        assert (
            undrawn(none, trace.tokens_BL, noise, PYRAMID)[2] == "the law that is shown has no probabilities of sum 1"
        )


@pytest.mark.parametrize("policy", ["kl:0.05", "kl:0.05+partial", "handoff:1", "collaborative:1", "code:1"])
def test_the_own_decoder_shows_the_law_that_it_draws_from(policy: str):
    trace = build_decoder(MODELS, Settings(2, True, policy)).decode(SOME, MODELS.noise(SOME))
    verdict = judged(trace)
    assert not verdict.defects
    lost_B = nats_of(MODELS, joint_budget(MODELS, compiled=False), SOME, trace).chunk(2, 1)[0].sum(1)
    assert 0 < float(lost_B.max()) < 5


def judged(trace, contract: Contract = Contract.QUALITY):
    expected = sample_sequential(MODELS.target, MODELS.vae, SOME, MODELS.noise(SOME))
    return judge(Evidence(MODELS, SOME, trace, expected, joint_budget(MODELS, compiled=False)), contract)


def test_a_law_that_does_not_draw_its_tokens_is_a_defect_with_its_place():
    trace = build_decoder(MODELS, Settings(2, policy="handoff:1")).decode(SOME, MODELS.noise(SOME))
    trace.law_BLV = trace.law_BLV.roll(1, 2)
    first = judged(trace).defects[0]
    assert (first.component, first.label, first.scale, first.position) == ("law", SOME.labels[first.image], 0, 0)
    assert "under the law that is shown the token loses its race" in first.detail
    trace.law_BLV = torch.zeros(6, PYRAMID.L, V + 1)
    assert "law_BLV is (6, 5, 4), not (6, 5, 3)" in str(judged(trace).defects[0])


@pytest.mark.parametrize("contract", [Contract.TOKENS, Contract.LAW])
def test_a_law_that_is_shown_draws_its_tokens_whatever_else_is_claimed(contract: Contract):
    trace = build_decoder(MODELS, Settings(2, True, "coupled")).decode(SOME, MODELS.noise(SOME))
    assert trace.law_BLV is not None
    assert not judged(trace, contract).defects
    trace.law_BLV = trace.law_BLV.roll(1, 2)
    first = judged(trace, contract).defects[0]
    assert (first.component, first.scale, first.position) == ("law", 0, 0)
    wrong_BL = (trace.tokens_BL + 1) % V
    wrong = judged(replace(trace, tokens_BL=wrong_BL), Contract.TOKENS)
    assert "law" not in {each.component for each in wrong.defects}  # the token's own cause is named


@pytest.mark.parametrize("policy", ["match:0.5", "rejection", "greedy"])
def test_a_law_that_hangs_on_its_numbers_is_not_shown(policy: str):
    assert build_decoder(MODELS, Settings(2, policy=policy)).decode(SOME, MODELS.noise(SOME)).law_BLV is None


def test_coupled_draws_from_the_targets_law():
    trace = build_decoder(MODELS, Settings(2, True, "coupled")).decode(SOME, MODELS.noise(SOME))
    least_BS, most_BS = nats_of(MODELS, joint_budget(MODELS, compiled=False), SOME, trace).chunk(2, 1)
    assert float(least_BS.max()) == 0
    assert float(most_BS.max()) < 1e-6
