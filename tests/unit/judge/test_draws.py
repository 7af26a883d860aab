"""Wrong tokens drawn from right logits name filter, noise or precision where these give them, and "draw" else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.judge._decode import judge
from harness.judge._evidence import Evidence
from harness.judge._passes import passes
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import CORRECT, TOKEN, Noise
from harness.reference._steps import draw, filter_logits, race
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import Budget
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3, 4, 5, 6)), kin=float("inf"))
REQUEST = Request((0, 1), seed=3, cfg=4.0, top_k=5, top_p=0.7)
BUDGET = Budget(1e-5, 5e-6, 1e-6, "by hand")
Drawn = Callable[[Tensor, Noise, int], Tensor]  # (guided_BlV, numbers, scale) -> idx_Bl


def sequential(tokens_BL: Tensor) -> Trace:
    return sample_sequential(MODELS.target, MODELS.vae, REQUEST, MODELS.noise(REQUEST), forced_BL=tokens_BL)


def decoded(drawn: Drawn) -> Evidence:
    """Return the evidence on a decoder that draws its own way, from right logits along its own tokens."""
    noise, pyramid = MODELS.noise(REQUEST), MODELS.pyramid
    free = sample_sequential(MODELS.target, MODELS.vae, REQUEST, noise)
    tokens_BL = free.tokens_BL.clone()
    for si in pyramid:
        span = pyramid.span(si)
        tokens_BL[:, span] = drawn(sequential(tokens_BL).shown.guided_BLV[:, span], noise, si)
    forced = sequential(tokens_BL)
    honest = build_decoder(MODELS, Settings(2)).decode(REQUEST, noise)
    actual = replace(
        honest, tokens_BL=tokens_BL, f_hat_BCPP=forced.f_hat_BCPP, intermediates=forced.intermediates, law_BLV=None
    )
    return Evidence(MODELS, REQUEST, actual, free, BUDGET)


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
        "filter", lambda g, noise, si: draw(filter_logits(right(g), 1, 0.0), noise.exponential(si, TOKEN, "t"))),
    "the filter drops a token that is drawn": (
        "filter", lambda g, noise, si: draw(filter_logits(g, 8, 0.9), noise.exponential(si, TOKEN, "t"))),
    "drawn with the numbers of image": (
        "noise", lambda g, noise, si: draw(right(g), noise.exponential(si, TOKEN, "t").flip(0))),
    'drawn with the numbers of stream "correct"': (
        "noise", lambda g, noise, si: draw(right(g), noise.exponential(si, CORRECT, "t"))),
    "drawn in bfloat16": (
        "precision", lambda g, noise, si: race(right(g), noise.exponential(si, TOKEN, "t")).bfloat16().argmax(-1)),
    "so filter, draw or noise is wrong": (
        "draw", lambda g, noise, si: draw(right(g), noise.exponential(si, TOKEN, "t").roll(1, -1))),
}  # fmt: skip


@pytest.mark.parametrize("clause", WAYS)
def test_the_way_that_gives_the_tokens_is_named(clause: str):
    component, drawn = WAYS[clause]
    defects = judge(decoded(drawn)).defects
    assert defects
    assert {each.component for each in defects} == {component}
    assert all(clause in each.detail for each in defects), defects[0].detail


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


def bent(**tensors: Tensor) -> Evidence:
    noise = MODELS.noise(REQUEST)
    honest = build_decoder(MODELS, Settings(2)).decode(REQUEST, noise)
    free = sample_sequential(MODELS.target, MODELS.vae, REQUEST, noise)
    return Evidence(MODELS, REQUEST, replace(honest, intermediates=replace(honest.shown, **tensors)), free, BUDGET)


def test_a_filter_that_writes_into_what_is_shown_is_no_rounding():
    guided_BLV = bent().actual.shown.guided_BLV
    (first, *_) = judge(bent(guided_BLV=right(guided_BLV))).defects
    assert (first.component, first.scale) == ("filter", 0)
    assert (
        first.detail == "guided logits of scale 0 hold -inf: they are shown before the filter, which writes into them"
    )
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
