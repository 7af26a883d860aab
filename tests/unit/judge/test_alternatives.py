"""The laws that are bet on: each is what the mistake that it is named after draws from, listed or simulated apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import harness.judge._likelihood as likelihood
from harness.judge._bets import Alternative, TokenSource, Wealth, usual_alternatives
from harness.judge._likelihood import TokensSeen, _Draws, bet, row_weights
from harness.protocol import Request, ScaleGuidance
from harness.protocol.pyramid import ScalePyramid
from harness.reference._steps import VAR
from harness.speculative.rejection import residual

V, N, S = 6, 7, 2
PYRAMID = ScalePyramid((1, 2))
DRAWS = PYRAMID.draws
SOURCES = {each.source: each for each in usual_alternatives(Request((1,), cfg=0.0), V) if each.share == 1}


REQUEST = Request((1,) * N, cfg=0.0)


def seen_of(request: Request = REQUEST, near: float = 1.0) -> TokensSeen:
    """Return tokens along random logits; the draft's are off by `near`."""
    generator = torch.Generator().manual_seed(0)
    rows_RLV = 2 * torch.randn(2 * N, DRAWS.L, V, generator=generator, dtype=torch.float64)
    draft_RLV = rows_RLV + near * torch.randn(2 * N, DRAWS.L, V, generator=generator, dtype=torch.float64)
    guided = [VAR.guide(rows_RLV[:, DRAWS.span(si)], request.guidance, si, S) for si in PYRAMID]
    tokens_BL = torch.randint(V, (N, DRAWS.L), generator=generator)
    return TokensSeen(request, tokens_BL, rows_RLV, torch.cat(guided, 1), draft_RLV, (1e-9,) * S, VAR)


def draws_of(seen: TokensSeen) -> _Draws:
    n, scale_L = torch.arange(N * DRAWS.L), torch.tensor(DRAWS.levels())
    return _Draws(seen, S, torch.stack((n // DRAWS.L, n % DRAWS.L)), scale_L[n % DRAWS.L], {})


def law_nV(draws: _Draws, alternative: Alternative) -> Tensor:
    """Return the law that is bet on, tokens in the codebook's order."""
    law_nK = draws.laws([alternative])[0]
    return torch.zeros_like(law_nK).scatter(1, draws.columns_nK, law_nK)


def both_laws(seen: TokensSeen) -> tuple[Tensor, Tensor]:
    """Return the target's law and the draft's."""
    return seen.guided_BLV.flatten(0, 1).softmax(-1), seen.draft_RLV[:N].flatten(0, 1).softmax(-1)


def rule_law(q_nV: Tensor, kept_nV: Tensor, redrawn_nV: Tensor) -> Tensor:
    """Return the law of a rule that keeps a drafted token with a chance, and draws anew else: token by token."""
    rejected_n1 = sum(q_nV[:, x : x + 1] * (1 - kept_nV[:, x : x + 1]) for x in range(V))
    return q_nV * kept_nV + rejected_n1 * redrawn_nV


@pytest.mark.parametrize("near", [1.0, 0.1])
@pytest.mark.parametrize("source", [each for each in SOURCES if each is not TokenSource.AGAIN])
def test_a_rule_that_is_wrong_in_one_thing_draws_from_the_law_that_is_bet_on(source: TokenSource, near: float):
    seen = seen_of(near=near)
    p_nV, q_nV = both_laws(seen)
    kept_nV, right_nV = (p_nV / q_nV).clamp_max(1), residual(q_nV, p_nV)
    rejects_n1 = 1 - torch.minimum(p_nV, q_nV).sum(-1, keepdim=True)
    kept_as = {TokenSource.COOLED: q_nV ** (1 / 0.98), TokenSource.HEATED: q_nV ** (1 / 1.02)}
    if source in kept_as:
        other_nV = kept_as[source] / kept_as[source].sum(-1, keepdim=True)
        expected_nV = rule_law(q_nV, (p_nV / other_nV).clamp_max(1), residual(other_nV, p_nV))
    elif source is TokenSource.EASILY:
        expected_nV = rule_law(q_nV, (p_nV / q_nV + 0.005).clamp_max(1), right_nV)
    else:
        is_wrong_n1 = rejects_n1 < (0.05 if source is TokenSource.SMALL else 2)
        assert is_wrong_n1.any() or near == 1.0
        expected_nV = rule_law(q_nV, kept_nV, torch.where(is_wrong_n1, p_nV, right_nV))
    assert (law_nV(draws_of(seen), SOURCES[source]) - expected_nV).abs().max() < 1e-12
    assert (rule_law(q_nV, kept_nV, right_nV) - p_nV).abs().max() < 1e-12  # the rule itself is right


def test_a_draft_that_is_the_target_leaves_every_rule_its_law():
    seen = seen_of(near=0.0)
    p_nV, _ = both_laws(seen)
    for source, each in SOURCES.items():
        moved = (law_nV(draws_of(seen), each) - p_nV).abs().max()
        assert (moved < 1e-12) == (source not in (TokenSource.COOLED, TokenSource.HEATED)), source


def test_a_race_that_is_run_again_with_its_numbers_is_near_the_law_that_is_bet_on():
    seen = seen_of()
    p_nV, q_nV = both_laws(seen)
    few, M = 10, 400_000
    found_nV = torch.zeros(few, V, dtype=torch.float64)
    for n in range(few):
        generator = torch.Generator().manual_seed(n)
        E_MV = torch.empty(M, V, dtype=torch.float64).exponential_(generator=generator)
        drafted_M = (q_nV[n] / E_MV).argmax(1)
        u_M = torch.rand(M, generator=generator, dtype=torch.float64)
        again_M = (residual(q_nV[n][None], p_nV[n][None]) / E_MV).argmax(1)
        tokens_M = torch.where(u_M * q_nV[n][drafted_M] < p_nV[n][drafted_M], drafted_M, again_M)
        found_nV[n] = torch.bincount(tokens_M, minlength=V) / M
    far = (found_nV - p_nV[:few]).abs().sum()
    assert far > 0.1
    assert (found_nV - law_nV(draws_of(seen), SOURCES[TokenSource.AGAIN])[:few]).abs().sum() < far / 4


@pytest.mark.parametrize("shares", [True, False])
def test_draws_that_share_numbers_with_their_neighbours_win_the_bet_and_others_lose_it(shares: bool):
    """Every image has the same laws, so that images are draws of one thing; rejected tokens share one race a scale."""
    images = 20_000
    seen = seen_of(near=3.0)
    p_LV, q_LV = (law_nV.view(N, DRAWS.L, V)[0] for law_nV in both_laws(seen))
    generator = torch.Generator().manual_seed(1)
    E_BLV = torch.empty(images, DRAWS.L, V, dtype=torch.float64).exponential_(generator=generator)
    if shares:
        E_BLV[:, 1:] = E_BLV[:, 1:2]
    drafted_BL = torch.multinomial(q_LV, images, replacement=True, generator=generator).T
    u_BL = torch.rand(images, DRAWS.L, generator=generator, dtype=torch.float64)
    at_BL1 = drafted_BL[..., None]
    q_BL, p_BL = (law_LV.expand(images, -1, -1).gather(2, at_BL1)[..., 0] for law_LV in (q_LV, p_LV))
    tokens_BL = torch.where(u_BL * q_BL < p_BL, drafted_BL, (residual(q_LV, p_LV) / E_BLV).argmax(-1))
    rows = [0] * images + [N] * images
    same = replace(
        seen, request=Request((1,) * images, cfg=0.0), tokens_BL=tokens_BL, rows_RLV=seen.rows_RLV[rows],
        draft_RLV=seen.draft_RLV[rows], guided_BLV=seen.guided_BLV[[0] * images],
    )  # fmt: skip
    alone = Alternative("shared", share=0.5, source=TokenSource.NEIGHBOUR)
    won_B = bet(same, PYRAMID, (alone,)).won_BAS[:, 0].sum(-1)
    assert float(won_B.exp().mean()) < 1.02 or shares  # no more than chance
    assert (float(won_B.mean()) > 0) == shares
    assert abs(float(won_B.mean())) > 5 * float(won_B.std()) / images**0.5


def test_guidance_is_what_its_weights_make_of_the_rows():
    rows_RlV = torch.randn(2, 3, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for cfg in (0.0, 1.5, -2.0):
        for later in (-1, 0, 1):
            for si, (first, second) in enumerate(row_weights(VAR, cfg, 4, later).tolist()):
                guided_BlV = VAR.guide(rows_RlV, cfg, min(max(si + later, 0), 3), 4)
                assert torch.allclose(guided_BlV, first * rows_RlV[:1] + second * rows_RlV[1:], atol=1e-12)


def test_one_filter_for_all_scales_and_the_same_one_for_each_are_bet_on_alike():
    one, each = (Request((1,) * N, **kind) for kind in ({"top_k": 4, "top_p": 0.9}, {"filters": ((4, 0.9),) * S}))
    words = [[a.words for a in usual_alternatives(request, V)] for request in (one, each)]
    assert words[0] == words[1]
    assert {"top-k were off", "top-p were off", "top-k were halved", "top-p were squared"} <= set(words[0])
    won = [bet(seen_of(request), PYRAMID, usual_alternatives(request, V)).won_BAS for request in (one, each)]
    assert torch.allclose(*won, atol=1e-12)


@pytest.mark.parametrize("filters", [{}, {"top_k": 4}, {"filters": ((2, 0.0), (0, 0.9))}])
def test_bets_on_parts_of_a_batch_are_those_on_the_whole(filters: dict[str, object], monkeypatch: pytest.MonkeyPatch):
    seen = seen_of(Request((1,) * N, **filters))  # type: ignore[arg-type]
    alternatives = usual_alternatives(seen.request, V)
    whole = bet(seen, PYRAMID, alternatives)
    for draws, laws in ((1, 1), (2, 1), (5, 2), (100, 3)):
        monkeypatch.setattr(likelihood, "CHUNK", (laws * draws * V, draws * V))
        parts = bet(seen, PYRAMID, alternatives)
        assert torch.allclose(parts.won_BAS, whole.won_BAS, atol=1e-12)
        assert torch.allclose(parts.mean_A, whole.mean_A, atol=1e-12)
        assert parts.forbidden == whole.forbidden


def test_filters_by_scale_are_bet_on_dropped_and_moved():
    request = Request((1,) * N, cfg=0.0, filters=((2, 0.0), (0, 0.0)))
    made = {each.words: each for each in usual_alternatives(request, V)}
    assert made["top-k were off"].filters == ((0, 0.0),) * S
    assert made["top-k were off"].required
    assert "top-p were off" not in made
    assert made["the filter were that of the scale before"].filters == ((2, 0.0), (2, 0.0))
    # a decoder that has its first scale's filter everywhere: the best two tokens of every draw
    seen = seen_of(request)
    first_two_BLk = seen.guided_BLV.topk(2).indices
    seen = replace(seen, tokens_BL=first_two_BLk[..., 0])
    wealth = Wealth(tuple(made.values()), S)
    for _ in range(20):
        wealth.take(bet(seen, PYRAMID, wealth.alternatives))
    moved = list(made).index("the filter were that of the scale before")
    assert wealth.won_AT[moved, 1] > 1 > wealth.won_AT[moved, 0]


@pytest.mark.parametrize("filters", [{"top_k": V}, {"top_p": 1.0}])
def test_a_filter_that_keeps_every_token_is_none(filters: dict[str, float]):
    made = usual_alternatives(Request((1,), **filters), V)
    assert not [each for each in made if each.filters and each.required]


def test_a_moved_weight_by_scale_stays_a_weight_by_scale():
    request = Request((1,), scale_guidance=ScaleGuidance((2.0, 3.0)))
    made = {each.words: each for each in usual_alternatives(request, V)}
    assert made["guidance weights were +0.1"].guidance == ScaleGuidance((2.1, 3.1))
