"""Comparison cannot pass by comparing nothing."""

from __future__ import annotations

import pytest
import torch

from harness.judge._compare import differences, largest_difference

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
        ({"x": torch.nextafter(ONE["x"], torch.tensor(9.0))}, ONE, "value"),  # one unit in the last place
        ({"x": ONE["x"].long()}, ONE, "dtype"),  # equal in value
        ({"x": ONE["x"].bfloat16()}, ONE, "dtype"),
        ({"x": ONE["x"].view(2, 1)}, ONE, "shape"),
        ({"x": ONE["x"][:1].expand(2)}, {"x": ONE["x"][:1]}, "shape"),  # would broadcast
        ({"x": torch.zeros(0)}, ONE, "shape"),
        ({"x": torch.zeros(2, 0)}, {"x": torch.zeros(2, 0)}, "empty"),
        ({"x": torch.tensor([-torch.inf])}, {"x": torch.tensor([-torch.inf])}, "non-finite"),
        ({"x": torch.tensor([1])}, {"x": torch.tensor([2])}, "value"),
        ({"x": torch.tensor([True])}, {"x": torch.tensor([False])}, "value"),
    ],
)
def test_every_kind_of_difference_is_seen(actual: dict, expected: dict, kind: str):
    found = differences(actual, expected, {"x": 0.0})
    assert [difference.kind for difference in found] == [kind]


def test_a_tolerance_holds_for_its_name_alone():
    far = {"x": ONE["x"] + 0.5, "y": ONE["x"] + 0.5}
    found = differences(far, {"x": ONE["x"], "y": ONE["x"]}, {"x": 0.6})
    assert [str(difference) for difference in found] == ["y: 2 of 2 differ, by 0.5, allowed 0"]
    assert differences(far, {"x": ONE["x"], "y": ONE["x"]}, {"x": 0.4, "y": 0.6})[0].name == "x"


def test_a_tolerance_excuses_neither_nan_nor_shape_nor_dtype():
    wide = {"x": float("inf")}
    for actual, kind in (
        ({"x": torch.tensor([1.0, torch.nan])}, "non-finite"),
        ({"x": ONE["x"][None]}, "shape"),
        ({"x": ONE["x"].double()}, "dtype"),
        ({}, "missing"),
        ({**ONE, "y": ONE["x"]}, "extra"),
    ):
        assert [difference.kind for difference in differences(actual, ONE, wide)] == [kind]


def test_every_difference_is_listed_with_its_name_and_size():
    actual = {"a": ONE["x"] + 2, "b": ONE["x"], "d": ONE["x"]}
    found = differences(actual, {"a": ONE["x"], "b": ONE["x"], "c": ONE["x"]})
    assert [(difference.name, difference.kind) for difference in found] == [
        ("a", "value"),
        ("c", "missing"),
        ("d", "extra"),
    ]
    assert str(found[0]) == "a: 2 of 2 differ, by 2, allowed 0"


@pytest.mark.parametrize(
    ("actual", "expected", "said"),
    [
        ({}, {}, "(all): nothing was compared: both sides are empty"),
        ({}, ONE, "x: missing"),
        (ONE, {}, "x: not expected"),
        ({"x": ONE["x"].double()}, ONE, "x: dtype torch.float64, expected torch.float32"),
        ({"x": ONE["x"][:1]}, ONE, "x: shape (1,), expected (2,)"),
        ({"x": torch.zeros(0)}, {"x": torch.zeros(0)}, "x: empty: nothing was compared"),
        ({"x": ONE["x"] * torch.nan}, ONE, "x: actual holds NaN or infinity"),
        (ONE, {"x": ONE["x"] * torch.inf}, "x: expected holds NaN or infinity"),
        ({"x": torch.tensor([1.0, 2.5])}, ONE, "x: 1 of 2 differ, by 0.5, allowed 0.25"),
    ],
)
def test_a_difference_is_one_clause(actual: dict, expected: dict, said: str):
    assert [str(found) for found in differences(actual, expected, {"x": 0.25})] == [said]


def test_a_tolerance_ends_where_it_says():
    far = {"x": torch.tensor([1.0, 2.5])}
    assert differences(far, ONE, {"x": 0.5}) == []
    assert len(differences(far, ONE, {"x": 0.4999})) == 1


def test_the_largest_difference_is_taken_in_float64_and_of_nothing_is_0():
    assert largest_difference(torch.zeros(0), torch.zeros(0)) == 0.0
    assert largest_difference(torch.tensor([2**24 + 1]), torch.tensor([2**24])) == 1.0  # float32 sees none
    assert largest_difference(torch.tensor([0.0, -3.0]), torch.tensor([0.0, 1.0])) == 4.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_largest_difference_does_not_hide_what_is_not_finite(value: float):
    assert not largest_difference(torch.tensor([1.0, value]), ONE["x"]) < 1e300
