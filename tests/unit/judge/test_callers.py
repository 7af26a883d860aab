"""What a frame holds otherwise than the request, and the line that gave it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.judge._recorder import Frame, Operation
from harness.judge._wrong_decode import caller_of, given_otherwise, numbers_asked
from harness.protocol._request import Request

REQUEST = Request((1, 2), 5, 3.0, 7, 0.5, images=(4, 6))
RAMPS = (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ({}, ("", False)),
        ({"cfg": 3.0, "x": 1}, ("", True)),
        ({"cfg": 1.5, "top_k": 0, "top_p": 0.0}, ("", True)),  # a share, and filters that are off for a step
        ({"cfg": 2.0}, ("cfg=2.0", False)),
        ({"top_k": 8, "cfg": 3.0}, ("top_k=8", True)),
        ({"seed": 6}, ("seed=6", False)),
        ({"request": REQUEST}, ("", True)),
        ({"part": REQUEST.only([1])}, ("", True)),
        ({"request": REQUEST, "other": replace(REQUEST, labels=(1, 1))}, ("labels=(1, 1)", True)),
        ({"other": replace(REQUEST, cfg=0.0, images=None)}, ("cfg=0.0, image_ids=(0, 1)", False)),
        ({"cfg": [3.0], "top_k": None}, ("", False)),
    ],
)
def test_what_is_not_asked_for_is_seen(values: dict[str, Any], seen: tuple[str, bool]):
    assert given_otherwise(values, REQUEST, numbers_asked(REQUEST, RAMPS)) == seen


def step_of(*given: tuple[str, bool]) -> Operation:
    stack = tuple(Frame("mine.py", n, f"f{n}") for n in range(len(given)))
    return Operation("mul", stack, [], [], False, [], [], [], given)


def test_the_caller_of_the_outermost_one_gave_it_or_itself_where_it_had_the_right_one():
    wrong, right, none = ("cfg=2.0", False), ("", True), ("", False)
    assert caller_of(step_of(none, right)) is None
    for given, line in (
        ((wrong, none, right), 1),
        ((none, wrong, wrong, right), 3),
        ((wrong, ("cfg=2.0", True), right), 1),
        ((none, wrong), 1),
    ):
        found = caller_of(step_of(*given))
        assert found is not None
        assert found[0].stack[0].line == line
        assert found[1] == ", with cfg=2.0, computed at mine.py:0"
