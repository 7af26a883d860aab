"""The networks that a recording names: their sizes, where they lie, and what is said of those that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.errors import InputError
from harness.golden import plan
from harness.golden.cases import CPU, SIZES, networks

CASE: dict[str, Any] = {
    key: value for key, value in plan.cases("filled")[0].items() if key in SIZES or key.startswith("draft_")
}
META = torch.device("meta")


def refusal(models: str = "filled", **sizes: object) -> str:
    with pytest.raises(InputError) as caught:
        networks({**CASE, **sizes}, models)
    return str(caught.value)


def test_the_draft_has_the_sizes_that_are_stated_and_otherwise_those_of_the_target():
    case = {**CASE, "depth": 3, "D": 64, "H": 2, "draft_depth": 1, "draft_D": 32, "draft_H": 4}
    for left_out, sizes in (
        ((), (1, 32, 4)),
        (("draft_depth",), (3, 32, 4)),
        (("draft_D",), (1, 64, 4)),
        (("draft_H",), (1, 32, 2)),
        (("draft_depth", "draft_D", "draft_H"), (3, 64, 2)),
    ):
        pair = networks({key: value for key, value in case.items() if key not in left_out}, "filled")
        assert (pair.draft.config.depth, pair.draft.config.D, pair.draft.config.H) == sizes
        assert (pair.target.config.depth, pair.target.config.D, pair.target.config.H) == (3, 64, 2)
        assert pair.name == "filled"


@pytest.mark.parametrize("models", plan.FILES)
def test_the_same_case_has_the_same_objects_on_each_device(models: str):
    pair = networks(CASE, models)
    assert networks(dict(CASE), models, CPU) is pair
    assert pair.device == CPU
    assert networks(CASE, models, META).device == META


def test_what_names_no_networks_is_refused():
    assert refusal("cats") == "models=cats: must be digits or filled; pass a recording of known networks"
    for key in SIZES:
        with pytest.raises(KeyError, match=key):
            networks({name: value for name, value in CASE.items() if name != key}, "filled")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"V": 0}, "sizes={'V': 0}: must be a whole number in 1..65536"),
        ({"H": 3}, "sizes=D=64 and H=3: D must be a multiple of H"),
        ({"draft_H": 3}, "sizes=D=32 and H=3: D must be a multiple of H"),
        ({"vae_ch": 48}, "sizes=vae_ch=48 times 1: must be a multiple of 32"),
        ({"D": 2**14, "depth": 128, "H": 2}, "sizes=414495179040 weights: must be at most 268435456 a network"),
    ],
)
def test_sizes_that_make_no_networks_are_refused_before_any_is_made(
    sizes: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.golden.cases.filled_weights", None)
    assert refusal(**sizes) == f"{said}; record it again"


@pytest.mark.parametrize(
    ("phi", "number", "layout"), [("1 shared", 1, "one"), ("2 shared", 2, "shared"), ("one a scale", 4, "per-scale")]
)
def test_phi_is_laid_out_as_it_is_spelled(phi: str, number: int, layout: str):
    found = networks({**CASE, "phi": phi}, "filled").vae.config
    assert (found.phi, found.phi_layout) == (number, layout)
    assert CASE["patch_nums"] == [1, 2, 3, 4]
