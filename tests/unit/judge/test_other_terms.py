"""What an input of the network lacks or holds twice, whose label it is, and rows that are filtered too early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.judge._components import _wrong_guided
from harness.protocol._trace import Intermediates
from harness.rounding._budget import Budget
from tests.unit.judge.test_places import MODELS, PYRAMID, changed, said, same


@pytest.mark.parametrize("low", [-1e4, -torch.inf])
@pytest.mark.parametrize("half", [0, 1])
def test_a_filter_before_guidance_is_named(low: float, half: int):
    found = replace(same(), request=replace(same().request, top_k=3))
    rows_lV = found.actual.intermediates.rows_RLV[2 * half, PYRAMID.span(0)]
    rows_lV[rows_lV < rows_lV.topk(3).values[..., -1:]] = low
    what = "hold -inf" if low == -torch.inf else "are right where the filter keeps them, and lower elsewhere"
    assert said(found, 0, 0) == ("filter", f"logits of scale 0 {what}: the filter acts before guidance")
    unfiltered = replace(found, request=replace(found.request, top_k=0))
    assert said(unfiltered, 0, 0)[0] == ("scheduling" if low == -torch.inf else "network")
    rows_lV[0, rows_lV[0].argmax()] += 9.0  # a kept one is wrong, too
    assert said(found, 0, 0)[0] == ("filter" if low == -torch.inf else "network")


@pytest.mark.parametrize("low", [-1e4, -torch.inf])
def test_a_filter_between_shown_rows_and_guidance_is_named(low: float):
    found = replace(same(), request=replace(same().request, top_k=MODELS.target.config.V - 1))
    kept, span = found.actual.intermediates, PYRAMID.span(1)
    rows_2lV = kept.rows_RLV[[0, 2], span]
    filtered_2lV = rows_2lV.masked_fill(rows_2lV == rows_2lV.amin(-1, keepdim=True), low)
    t = found.request.cfg * PYRAMID.ramp(1)
    kept.guided_BLV[0, span] = (1 + t) * filtered_2lV[0] - t * filtered_2lV[1]
    assert said(found, 0)[0] == "filter"
    assert said(found, 0)[1].endswith("where the filter keeps both, and no others: the filter acts before guidance")
    kept.guided_BLV[0, span] = (2 + t) * rows_2lV[0] - t * rows_2lV[1]
    assert said(found, 0)[0] == "guidance"


def test_a_filter_that_keeps_nothing_in_both_halves_or_everything_explains_nothing():
    alone = replace(same(), request=replace(same().request, top_k=1))
    kept, span = alone.actual.intermediates, PYRAMID.span(0)
    kept.rows_RLV[0, span, 0] = kept.rows_RLV[2, span, 1] = 99.0  # of one token a half none is kept in both
    kept.guided_BLV[0, span] = 2 * kept.rows_RLV[0, span] - kept.rows_RLV[2, span]
    assert _wrong_guided(alone, 0, 0)[0] == "guidance"
    whole = replace(
        same(), request=replace(same().request, top_k=MODELS.target.config.V), budget=Budget(1.0, 1e-4, 1e-5, "")
    )
    whole.actual.intermediates.rows_RLV[0, span] -= 0.5  # within what one logit may be off, and not all of them
    assert said(whole, 0, 0)[0] != "filter"


def test_the_label_whose_input_stands_there_is_said():
    found = same()
    _, other = found.numbers.labels(MODELS.target.config.classes).tolist()
    found.actual.intermediates.x_RLD[0, 0] = found.expected.intermediates.x_RLD[1, 0]
    assert said(found, 0, 0) == (
        "condition",
        f"the input of scale 0 is not that of its label in the conditional row alone: it is that of label {other}",
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda level, pos: -level, "no level term"),
        (lambda level, pos: -pos, "no position term"),
        (lambda level, pos: -level - pos, "neither a position nor a level term"),
        (lambda level, pos: level + pos, "their position and level terms twice"),
        (lambda level, pos: -MODELS.target.start_1D, "no start term"),
    ],
)
@pytest.mark.parametrize("si", [0, 1])
def test_a_term_that_an_input_does_not_carry_is_said(change: Any, what: str, si: int):
    def move(kept: Intermediates) -> None:
        network, span = MODELS.target, PYRAMID.span(si)
        kept.x_RLD[[0, 2], span] += change(network.lvl_SD[si], network.pos_LD[span])

    if what == "no start term" and si:
        assert changed(move, 0, si)[1] != f"inputs of scale {si} carry {what}"
    else:
        assert changed(move, 0, si) == ("positions", f"inputs of scale {si} carry {what}")
