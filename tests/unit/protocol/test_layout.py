"""The layout of an image: positions and draws of any rectangles; and what only some families are asked with."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from harness.errors import InputError
from harness.models.network import TransformerConfig
from harness.protocol import Request, ScaleGuidance, growth, largest_factor, request_of, request_values
from harness.protocol._request import Rows
from harness.protocol.pyramid import PATCH_NUMS_256, PATCH_NUMS_512, ScalePyramid

LAYOUT = ScalePyramid(sides=((1, 1), (3, 2), (2, 5)), channels=4)
TEXT = Rows.of([[0.1, -2.0], [3.0, 1e-7]])
GUIDED = Request(
    (0, 1), 3, texts=(TEXT, Rows.of([[1.0, 2.0]])), scale_guidance=ScaleGuidance((1.0, 2.5, 3.0), (1.0, 0.5, 2.0)),
    filters=((1, 0.0), (0, 0.5), (2, 0.0)),
)  # fmt: skip


@pytest.mark.parametrize("sides", [PATCH_NUMS_256, PATCH_NUMS_512, (1,), (1, 2, 3)])
def test_squares_with_one_draw_a_position_are_what_they_were(sides: tuple[int, ...]):
    pyramid, begin = ScalePyramid(sides), 0
    for si, side in enumerate(sides):
        assert (pyramid.begin(si), pyramid.end(si), pyramid.tokens(si)) == (begin, begin + side**2, side**2)
        begin += side**2
    assert (pyramid.L, pyramid.P, pyramid.begin(pyramid.S)) == (begin, sides[-1], begin)
    assert pyramid.draws.counts == pyramid.counts
    assert ScalePyramid(sides=pyramid.sides) == pyramid
    assert hash(pickle.loads(pickle.dumps(pyramid))) == hash(pyramid)
    assert pyramid.place(begin - 1) == (begin - 1, -1)
    assert pyramid.draw(begin - 1, -1) == begin - 1


def test_rectangles_with_several_draws_a_position():
    assert LAYOUT.patch_nums == ()
    assert LAYOUT.counts == (1, 6, 10)
    assert LAYOUT.draws.counts == (4, 24, 40)
    for spans in (LAYOUT, LAYOUT.draws):
        every = [number for si in LAYOUT for number in range(spans.L)[spans.span(si)]]
        assert every == list(range(spans.L))
        assert spans.levels() == [spans.level_of(number) for number in every]
    places = [LAYOUT.place(draw) for draw in range(LAYOUT.draws.L)]
    assert places[:6] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert [LAYOUT.draw(*place) for place in places] == list(range(LAYOUT.draws.L))
    assert ScalePyramid(sides=LAYOUT.sides) != LAYOUT


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"patch_nums": (2, 3)}, "patch_nums=(2, 3): must start at 1 and increase strictly"),
        ({"patch_nums": ()}, "patch_nums=(): must start at 1"),
        ({"sides": ((2, 1), (3, 3))}, "the first scale one position"),
        ({"sides": ((1, 1), (0, 3))}, "must be positive"),
        ({"patch_nums": (1, 2), "channels": 0}, "channels=0: must be 1 or more"),
    ],
)
def test_a_layout_that_there_is_not_is_refused(given: dict, said: str):
    with pytest.raises(InputError) as caught:
        ScalePyramid(**given)
    assert said in str(caught.value)


def test_a_request_that_says_nothing_new_has_the_names_that_it_had():
    assert list(request_values(Request((0,), 1))) == [
        "labels", "seed", "cfg", "top_k", "top_p", "more_smooth", "order", "images", "count", "seeds",
    ]  # fmt: skip


def test_texts_guidance_and_filters_come_back_from_json_unchanged():
    again = request_of(json.loads(json.dumps(request_values(GUIDED))))
    assert again == GUIDED
    assert hash(again) == hash(GUIDED)
    assert again.texts[0] != again.texts[1]
    assert GUIDED.only([1]).texts == GUIDED.texts  # labels go on numbering them
    assert [GUIDED.filter(si) for si in range(3)] == [(1, 0.0), (0, 0.5), (2, 0.0)]
    assert (GUIDED.at(1).top_p, GUIDED.at(1).filters) == (0.5, ())
    assert Request((0,), top_k=3).at(1).top_k == 3


def test_what_guidance_makes_of_an_error():
    assert growth(-2.0, 0.5, 1) == 3.0
    assert largest_factor(-2.0, 0.5, 1) == 2.0
    guidance = GUIDED.guidance
    assert growth(guidance, 0.5, 1) == (2.5 + 1.5) / 0.5
    assert largest_factor(guidance, 1.0, 2) == 3.0 / 2.0
    for si in range(3):  # by hand: one row moves by +e, the other by -e
        w, tau = GUIDED.scale_guidance.weights[si], GUIDED.scale_guidance.temperatures[si]
        assert abs(w * 1 + (1 - w) * -1) / tau <= growth(guidance, si / 2, si)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (GUIDED, "texts=given: is nothing that the family var reads"),
        (
            Request((0,), scale_guidance=ScaleGuidance((1.0,) * 3)),
            "scale_guidance=given: is nothing that",
        ),
        (Request((0,), filters=((1, 0.0),)), "filters=((1, 0.0),): must hold one entry a scale (3)"),
        (Request((4,)), "labels=4: must lie in 0..3"),
        (Request((0,), filters=((9, 0.0),) * 3), "top_k=9: must lie in 0..V=5"),
    ],
)
def test_var_refuses_what_it_does_not_read(request_: Request, said: str):
    config = TransformerConfig(ScalePyramid((1, 2, 3)), 1, 8, 2, 5, 4, 3)
    with pytest.raises(InputError) as caught:
        request_.check_for(config)
    assert said in str(caught.value)
    Request((3,), filters=((1, 0.0),) * 3, more_smooth=True).check_for(config)


def test_rows_are_finite_numbers():
    for numbers in (torch.zeros(0, 2), torch.tensor([[float("nan")]]), torch.zeros(2), torch.zeros(1, 1).double()):
        with pytest.raises(InputError, match="must be finite float32 numbers"):
            Rows(numbers)
    with pytest.raises(InputError, match="must be positive"):
        ScaleGuidance((1.0,), (0.0,))
    with pytest.raises(InputError, match="must hold finite numbers"):
        ScaleGuidance((float("inf"),))
