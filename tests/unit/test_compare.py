"""Comparison cannot pass by comparing nothing."""

from __future__ import annotations

import pytest
import torch

from harness.compare import differences

ONE = {"x": torch.tensor([1.0, 2.0])}


def test_equal_tensors_do_not_differ():
    assert differences(ONE, {"x": ONE["x"].clone()}) == []


@pytest.mark.parametrize(
    ("actual", "expected", "kind"),
    [
        ({}, {}, "nothing"),
        ({}, ONE, "missing"),
        (ONE, {}, "extra"),
        ({"x": torch.zeros(0)}, {"x": torch.zeros(0)}, "empty"),
        ({"x": torch.tensor([1.0, torch.nan])}, ONE, "non-finite"),
        (ONE, {"x": torch.tensor([1.0, torch.inf])}, "non-finite"),
        ({"x": torch.tensor([torch.nan])}, {"x": torch.tensor([torch.nan])}, "non-finite"),
        ({"x": ONE["x"].double()}, ONE, "dtype"),
        ({"x": ONE["x"][None]}, ONE, "shape"),
        ({"x": ONE["x"] + 1e-6}, ONE, "value"),
    ],
)
def test_every_kind_of_difference_is_seen(actual: dict, expected: dict, kind: str):
    found = differences(actual, expected, {"x": 0.0})
    assert [difference.kind for difference in found] == [kind]


def test_a_tolerance_holds_for_its_name_alone():
    far = {"x": ONE["x"] + 0.5, "y": ONE["x"] + 0.5}
    found = differences(far, {"x": ONE["x"], "y": ONE["x"]}, {"x": 0.6})
    assert [(difference.name, difference.largest) for difference in found] == [("y", 0.5)]
    assert differences(far, {"x": ONE["x"], "y": ONE["x"]}, {"x": 0.4, "y": 0.6})[0].name == "x"
