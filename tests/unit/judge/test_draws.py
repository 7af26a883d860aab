"""Wrong tokens drawn from right logits name what gives them: filter, noise, precision, another image; else "draw"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.judge._decode import judge
from harness.judge._evidence import Evidence
from harness.judge._passes import passes
from harness.judge._suspects import ACCEPTED, OWN, UNEXPLAINED
from harness.judge._verdict import Divergence, Judgement
from harness.models._pair import ModelPair, close_pair
from harness.mutants.acceptance import ALL_STAND
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import CORRECT, TOKEN, Noise
from harness.reference._steps import draw, filter_logits, race
from harness.reference._var import guide
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import Budget
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder, build_decoder
from tests.helpers import Layout, tiny, verify_here

MODELS = tiny(Layout((1, 2, 3, 4, 5, 6, 8, 10, 13)), kin=float("inf"))
REQUEST = Request((0, 1), seed=3, cfg=4.0, top_k=5, top_p=0.7)
BUDGET = Budget(1e-5, 5e-6, 1e-6, "by hand")
Drawn = Callable[[Tensor, Noise, int], Tensor]  # (guided_BlV, numbers, scale) -> idx_Bl


def sequential(tokens_BL: Tensor, request: Request = REQUEST) -> Trace:
    return sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request), forced_BL=tokens_BL)


def decoded(drawn: Drawn, request: Request = REQUEST) -> Evidence:
    """Return the evidence on a decoder that draws its own way, from right logits along its own tokens."""
    noise, pyramid = MODELS.noise(request), MODELS.pyramid
    free = sample_sequential(MODELS.target, MODELS.vae, request, noise)
    tokens_BL = free.tokens_BL.clone()
    for si in pyramid:
        span = pyramid.span(si)
        tokens_BL[:, span] = drawn(sequential(tokens_BL, request).shown.guided_BLV[:, span], noise, si)
    forced = sequential(tokens_BL, request)
    honest = build_decoder(MODELS, Settings(2)).decode(request, noise)
    actual = replace(
        honest, tokens_BL=tokens_BL, f_hat_BCPP=forced.f_hat_BCPP, intermediates=forced.intermediates, law_BLV=None
    )
    return Evidence(MODELS, request, actual, free, BUDGET)


def right(guided_BlV: Tensor) -> Tensor:
    return filter_logits(guided_BlV, REQUEST.top_k, REQUEST.top_p)


WAYS: dict[str, tuple[str, Drawn]] = {
    "drawn without a filter": ("filter", lambda g, noise, si: draw(g, noise.exponential(si, TOKEN, "t"))),
    "drawn with top-k alone": (
        "filter", lambda g, noise, si: draw(filter_logits(g, REQUEST.top_k, 0.0), noise.exponential(si, TOKEN, "t"))),
    "drawn with top-p before top-k": (
        "filter",
        lambda g, noise, si: draw(
            filter_logits(filter_logits(g, 0, REQUEST.top_p), REQUEST.top_k, 0.0), noise.exponential(si, TOKEN, "t"))),
    "the filter drops too many": (
        "filter", lambda g, noise, si: draw(filter_logits(g, REQUEST.top_k, 0.6), noise.exponential(si, TOKEN, "t"))),
    "drawn as with a top-p that is larger by about 0.0": (
        "filter", lambda g, noise, si: draw(filter_logits(g, 5, 0.75), noise.exponential(si, TOKEN, "t"))),
    "the filter drops too few": (  # from position to position
        "filter", lambda g, noise, si: draw(
            torch.where(torch.arange(g.shape[1])[:, None] % 2 == 0, *(filter_logits(g, 5, p) for p in (0.7, 0.9))),
            noise.exponential(si, TOKEN, "t"))),
    "wins where another threshold drops others": (  # from position to position
        "filter", lambda g, noise, si: draw(
            torch.where(torch.arange(g.shape[1])[:, None] % 2 == 0, *(filter_logits(g, 5, p) for p in (0.5, 0.9))),
            noise.exponential(si, TOKEN, "t"))),
    "or noise is wrong": ("draw", lambda g, noise, si: draw(right(g), noise.exponential(si, TOKEN, "t")).roll(1, 1)),
    "draw or noise is wrong": (
        "draw", lambda g, noise, si: (draw(right(g), noise.exponential(si, TOKEN, "t")) + 1) % g.shape[-1]),
    "drawn with the numbers of image": (
        "noise", lambda g, noise, si: draw(right(g), noise.exponential(si, TOKEN, "t").flip(0))),
    'drawn with the numbers of stream "correct"': (
        "noise", lambda g, noise, si: draw(right(g), noise.exponential(si, CORRECT, "t"))),
    "the most likely ones": ("draw", lambda g, noise, si: g.argmax(-1)),
    "drawn at a temperature of 2": ("draw", lambda g, noise, si: draw(right(g) / 2, noise.exponential(si, TOKEN, "t"))),
    "those of image 0 of the batch": (
        "rows", lambda g, noise, si: draw(right(g), noise.exponential(si, TOKEN, "t"))[:1].expand(2, -1)),
    "so filter, draw or noise is wrong": (
        "draw", lambda g, noise, si: draw(right(g), noise.exponential(si, TOKEN, "t").roll(1, -1))),
}  # fmt: skip


@pytest.mark.parametrize("clause", WAYS)
def test_the_way_that_gives_the_tokens_is_named(clause: str):
    """Of an image with few wrong tokens nothing more than "draw" may be known."""
    component, drawn = WAYS[clause]
    defects = judge(decoded(drawn)).defects
    assert (component, True) in {(each.component, clause in each.detail) for each in defects}
    assert {each.component for each in defects} <= {component, "draw"}


@pytest.mark.parametrize("more", [1, 2])
def test_a_larger_top_k_is_named_by_how_much_and_not_as_no_filter(more: int):
    """All tokens are its own; most of the wrong ones a decoder without a filter would draw, too."""
    request = replace(REQUEST, top_p=0.0)
    found = decoded(
        lambda g, noise, si: draw(filter_logits(g, 5 + more, 0.0), noise.exponential(si, TOKEN, "t")), request
    )
    drawn = f"drawn as with a top-k that is larger by {more}, or more"
    assert {each.detail for each in judge(found).defects} == {f"guided logits agree, and the tokens are {drawn}"}


def test_all_filters_that_give_the_tokens_are_named():
    """Of few wrong tokens several do."""
    found = decoded(lambda g, noise, si: draw(filter_logits(g, 6, 0.7), noise.exponential(si, TOKEN, "t")))
    detail = judge(found).defects[0].detail
    ways = (
        "drawn with top-p before top-k, or drawn with top-p alone, or drawn as with a top-p that is larger by about 0.0"
    )
    assert detail.startswith(f"guided logits agree, and the tokens are {ways}")


@pytest.mark.parametrize("filtered", [{}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.8}])
def test_a_draft_that_is_accepted_is_no_filters(filtered: dict[str, float]):
    """The target's filter drops some of the draft's tokens, which the draft's own filter keeps."""
    requests = [Request((0, 2, 1), seed, **filtered) for seed in range(2)]
    found = verify_here(close_pair(tiny(), 0.3), ALL_STAND, [Settings(3)], requests)
    judged = [row.judgement for setting in found.settings for row in setting.rows]
    assert {each.component for one in judged for each in one.defects} == {"accept"}


PLAIN = replace(REQUEST, labels=(0, 1, 2, 0), seed=1, cfg=1.5, top_k=0, top_p=0.0)


def test_a_race_in_bfloat16_is_named_where_no_temperature_gives_the_tokens():
    in_bfloat16 = decoded(lambda g, noise, si: race(g, noise.exponential(si, TOKEN, "t")).bfloat16().argmax(-1), PLAIN)
    assert "drawn in bfloat16" in {each.detail.partition("tokens are ")[2] for each in judge(in_bfloat16).defects}


@pytest.mark.parametrize("tau", [0.97, 0.9, 1.1])
def test_a_temperature_is_called_neither_a_filter_nor_rounding(tau: float):
    """The closest races are those that rounding decides otherwise, too."""
    for request in (REQUEST, PLAIN):
        filtered = (request.top_k, request.top_p)
        found = decoded(
            lambda g, noise, si: draw(filter_logits(g, *filtered) / tau, noise.exponential(si, TOKEN, "t")),  # noqa: B023
            request,
        )
        assert {each.component for each in judge(found).defects} <= {"draw"}


def test_a_few_tokens_that_another_way_gives_by_chance_name_nothing():
    """One token is the one without a filter; the others, which a decoder without a filter would draw, are right."""
    found = decoded(lambda g, noise, si: draw(right(g), noise.exponential(si, TOKEN, "t")))
    free_BL = torch.cat([WAYS["drawn with the numbers of image"][1](
        found.expected.shown.guided_BLV[:, MODELS.pyramid.span(si)], MODELS.noise(REQUEST), si
    ) for si in MODELS.pyramid], 1)  # fmt: skip
    tokens_BL = found.actual.tokens_BL.clone()
    position = int(torch.nonzero(free_BL[0] != tokens_BL[0])[-1])
    tokens_BL[0, position] = free_BL[0, position]
    forced = sequential(tokens_BL)
    actual = replace(
        found.actual, tokens_BL=tokens_BL, f_hat_BCPP=forced.f_hat_BCPP, intermediates=forced.intermediates
    )
    defects = judge(replace(found, actual=actual)).defects
    assert [(each.position, each.component) for each in defects] == [(position, "draw")]


def off_by(size: float, planted: bool) -> Judgement:
    """Judge a decoder whose logits are off, that draws rightly from them, but for one token where that is asked."""
    request, pyramid = replace(REQUEST, cfg=1.5, top_p=0.9), MODELS.pyramid
    noise = MODELS.noise(request)
    free = sample_sequential(MODELS.target, MODELS.vae, request, noise)
    generator = torch.Generator().manual_seed(0)
    moved_RLV = size * torch.randn(free.shown.rows_RLV.shape, generator=generator).clamp(-2, 2)
    tokens_BL, guided_BLV = free.tokens_BL.clone(), free.shown.guided_BLV.clone()
    for si in pyramid:
        span = pyramid.span(si)
        rows_RlV = (sequential(tokens_BL, request).shown.rows_RLV + moved_RLV)[:, span]
        guided_BLV[:, span] = guide(rows_RlV, request.cfg, si, pyramid.S)
        tokens_BL[:, span] = draw(filter_logits(guided_BLV[:, span], 5, 0.9), noise.exponential(si, TOKEN, "t"))
    if planted:
        kept_nV = filter_logits(guided_BLV, 5, 0.9)[0, span].isfinite()
        place = span.start + int((kept_nV.sum(1) > 2).nonzero()[-1])
        tokens_BL[0, place] = next(v for v in range(11) if kept_nV[place - span.start, v] and v != tokens_BL[0, place])
    forced = sequential(tokens_BL, request)
    shown = replace(forced.shown, rows_RLV=forced.shown.rows_RLV + moved_RLV, guided_BLV=guided_BLV)
    honest = build_decoder(MODELS, Settings(2)).decode(request, noise)
    actual = replace(honest, tokens_BL=tokens_BL, f_hat_BCPP=forced.f_hat_BCPP, intermediates=shown, law_BLV=None)
    return judge(Evidence(MODELS, request, actual, free, Budget(0.2, 0.15, 1e-6, "by hand")))


def test_ties_are_not_among_what_is_named():
    """Its own logits, off by rounding, give them: they fit any filter that changes few draws."""
    judged = off_by(0.05, planted=True)
    assert len(judged.ties) > 20
    assert [each.component for each in judged.defects] == ["draw"]


def test_tokens_that_its_own_logits_give_accuse_no_draw():
    """These are off by less than two right decoders may be apart, and by more than one may be from float64."""
    judged = off_by(0.15, planted=False)
    assert {(each.component, each.detail) for each in judged.defects} == {OWN}


def bent(**tensors: Tensor) -> Evidence:
    noise = MODELS.noise(REQUEST)
    honest = build_decoder(MODELS, Settings(2)).decode(REQUEST, noise)
    free = sample_sequential(MODELS.target, MODELS.vae, REQUEST, noise)
    return Evidence(MODELS, REQUEST, replace(honest, intermediates=replace(honest.shown, **tensors)), free, BUDGET)


def test_a_filter_that_writes_into_what_is_shown_is_no_rounding():
    guided_BLV = bent().actual.shown.guided_BLV
    (first, *_) = judge(bent(guided_BLV=right(guided_BLV))).defects
    assert (first.component, first.scale) == ("filter", 0)
    assert first.detail == "guided logits of scale 0 hold -inf: they must be shown as they are before the filter"
    (first, *_) = judge(bent(guided_BLV=right(guided_BLV + 1))).defects  # and is wrong besides
    assert first.component == "guidance"


def test_guidance_that_writes_into_its_rows_is_named():
    shown = bent().actual.shown
    rows_RLV = torch.cat((shown.guided_BLV, shown.rows_RLV[REQUEST.B :]))
    (first, *_) = judge(bent(rows_RLV=rows_RLV)).defects
    assert (first.component, first.scale) == ("guidance", 1)
    assert "conditional rows of scale 1 are guided logits: guidance writes into the rows that it reads" in first.detail


def test_a_pass_that_catches_up_begins_where_its_rows_say():
    found = bent()
    (turn, *_) = found.actual.rounds[0]
    late = replace(turn, first=2, drafted=1, accepted=1, corrected=False, target_rows=MODELS.pyramid.end(2))
    rounds = [[replace(late, first=0, drafted=2, accepted=2, target_rows=0), late], *found.actual.rounds[1:]]
    found = replace(found, actual=replace(found.actual, rounds=rounds))
    assert [(each.first, each.last) for each in passes(found, 0, 2)] == [(2, 2), (0, 2)]


def test_wrong_draws_under_filters_alone_are_the_filters():
    """Nothing in one decode says so; decodes without a filter that are right do."""

    def moved(guided_BlV: Tensor, top_k: int, top_p: float) -> Tensor:
        kept_BlV = filter_logits(guided_BlV, top_k, top_p)
        return kept_BlV.roll(1, -1) if top_k or top_p else kept_BlV

    class Moved(SpeculativeDecoder):
        def __init__(self, models: ModelPair, settings: Settings) -> None:
            super().__init__(models, DecoderOptions(2))
            self.parts = replace(self.parts, filter_logits=moved)

    def first(*requests: Request) -> str:
        found = verify_here(MODELS, Moved, [Settings(2)], requests)
        assert found.first_divergence is not None
        return found.first_divergence.component

    plain, filtered = Request((0, 1), seed=3), replace(REQUEST, cfg=1.5)
    assert first(filtered) == "draw"
    assert first(plain, filtered) == "filter"


@pytest.mark.parametrize("detail", [UNEXPLAINED, ACCEPTED])
def test_a_filter_comes_before_acceptance_where_tokens_are_wrong_under_filters_alone(detail: tuple[str, str]):
    """A wrong filter of draft and target alike looks like a draft's token that was accepted."""
    requests = [Request((0, 1), seed=3), replace(REQUEST, cfg=1.5)]
    found = verify_here(MODELS, build_decoder, [Settings(2)], requests)
    wrong = Divergence(*detail, 3, 0, 0, 1, 0)
    filtered = found.settings[0].rows[1]
    found.settings[0].rows[1] = replace(filtered, judgement=replace(filtered.judgement, defects=[wrong]))
    assert found.first_divergence.component == "filter"
    both = found.settings[0].rows[0]
    found.settings[0].rows[0] = replace(both, judgement=replace(both.judgement, defects=[wrong]))
    assert found.first_divergence.component == detail[0]


@pytest.mark.parametrize(("moves", "component"), [(True, "noise"), (False, "draw")])
def test_draws_of_the_global_generator_are_noise(moves: bool, component: str):
    def factory(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
        def drawn(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
            other = None if moves else torch.Generator().manual_seed(1)
            return draw(probs_BnV.log(), torch.empty_like(E_BnV).exponential_(1, generator=other))

        decoder = SpeculativeDecoder(models, DecoderOptions(2))
        decoder.parts = replace(decoder.parts, draw=drawn)
        return decoder

    first = verify_here(MODELS, factory, [Settings(2)], [Request((0, 1), seed=3)]).first_divergence
    assert first.component == component, str(first)
    assert ("moved PyTorch's global generator" in first.detail) is moves
