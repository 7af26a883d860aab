"""What a case may ask for: sizes on both sides of every limit, and every case as it was written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from harness.errors import InputError
from harness.golden import _metadata as metadata
from harness.golden import _plan as plan
from harness.golden._metadata import DRAFT, MOST_TOKENS, SIZES, GoldenCase, Recipe, check_fit, check_weights
from harness.protocol.pyramid import ScalePyramid
from tests.helpers import Layout, autoencoder_config, transformer_config

RIGHT: dict[str, Any] = {
    "patch_nums": [1, 2, 3], "V": 32, "C": 8, "phi": "4 shared", "vae_ch": 32, "vae_mult": [1, 2], "depth": 2, "D": 64,
    "H": 2, "shared_adaln": False, "l2_norm": True, "classes": 5,
}  # fmt: skip
# largest values; length and largest entry
MOST = {"V": 65536, "C": 4096, "vae_ch": 4096, "depth": 128, "D": 16384, "H": 1024, "classes": 65536}
MOST |= {"draft_depth": 128, "draft_D": 16384, "draft_H": 1024}
MOST_LISTED = {"patch_nums": (64, 128), "vae_mult": (8, 64)}


def check_sizes(values: dict[str, Any]) -> Recipe:
    return Recipe.from_values(values)


def refusal(**sizes: object) -> str:
    with pytest.raises(InputError) as caught:
        check_sizes({**RIGHT, **sizes})
    return str(caught.value)


def test_every_size_has_a_limit():
    assert {*SIZES, *DRAFT} == {*MOST, *MOST_LISTED, "phi", "shared_adaln", "l2_norm"}


@pytest.mark.parametrize("key", MOST)
def test_a_size_lies_between_one_and_its_limit(key: str):
    for right in (1, MOST[key]):
        assert getattr(check_sizes({**RIGHT, key: right}), key) == right
    for wrong in (0, -1, MOST[key] + 1, 2.0, True, "2", None, [2]):
        told = f"{key}={wrong}: must be a whole number in 1..{MOST[key]}; record it again"
        assert refusal(**{key: wrong}) == told


@pytest.mark.parametrize("key", MOST_LISTED)
def test_a_list_of_sizes_is_as_long_and_its_entries_as_large_as_their_limits(key: str, monkeypatch: pytest.MonkeyPatch):
    length, most = MOST_LISTED[key]
    monkeypatch.setattr(metadata, "MOST_TOKENS", length * most**2)
    for right in ([1], [1, most] * (length // 2)):
        check_sizes({**RIGHT, key: right})
    for wrong in ([1] * (length + 1), [], [1, most + 1], [0], [1, 2.0, 3], 12, "12"):
        told = f"{key}={wrong}: must be a list of 1..{length}, each a whole number in 1..{most}; record it again"
        assert refusal(**{key: wrong}) == told


@pytest.mark.parametrize("key", ["shared_adaln", "l2_norm"])
def test_a_switch_is_true_or_false(key: str):
    for right in (True, False):
        check_sizes({**RIGHT, key: right})
    for wrong in (0, 1, None, "no", [True]):
        assert refusal(**{key: wrong}) == f"{key}={wrong}: must be of type bool; record it again"


def test_phi_is_one_of_its_spellings():
    for right in ("1 shared", "4 shared", "99 shared", "one a scale"):
        check_sizes({**RIGHT, "phi": right})
    for wrong in ("0 shared", "00 shared", "04 shared", "100 shared", "-1 shared", "4 shared.", "4", "", 4, None):
        told = f"phi={wrong}: must be of the form [1-9][0-9]? shared|one a scale; record it again"
        assert refusal(phi=wrong) == told


@pytest.mark.parametrize("key", SIZES)
def test_what_no_network_does_without_is_missed_by_name(key: str):
    with pytest.raises(KeyError, match=key):
        check_sizes({name: value for name, value in RIGHT.items() if name != key})


def test_heads_share_the_width_and_groups_the_channels():
    target, draft = (replace(transformer_config(Layout()), D=24, H=H) for H in (8, 3))
    vae = replace(autoencoder_config(Layout()), ch=16, multipliers=(2, 4))
    check_fit((draft, target), vae)
    for wrong, said in (
        ((replace(draft, D=25), target), "D=25 and H=3: D must be a multiple of H"),
        ((draft, replace(target, H=9)), "D=24 and H=9: D must be a multiple of H"),
    ):
        with pytest.raises(InputError) as caught:
            check_fit(wrong, vae)
        assert str(caught.value) == f"sizes={said}; record it again"
    for multipliers in ((2, 3), (3, 2)):
        with pytest.raises(InputError) as caught:
            check_fit((draft, target), replace(vae, multipliers=multipliers))
        assert str(caught.value) == "sizes=vae_ch=16 times 3: must be a multiple of 32; record it again"


def test_the_scales_of_a_pyramid_have_so_many_tokens_together():
    side = 64
    assert 2 * side**2 == MOST_TOKENS
    check_sizes({**RIGHT, "patch_nums": [side, side]})
    told = f"sizes=patch_nums of {MOST_TOKENS + 1} tokens: must have at most {MOST_TOKENS}; record it again"
    assert refusal(patch_nums=[1, side, side]) == told


def test_a_network_has_so_many_weights():
    most = metadata.MOST_NUMBERS
    check_weights(most)
    with pytest.raises(InputError) as caught:
        check_weights(most + 1)
    assert str(caught.value) == f"sizes={most + 1} weights: must be at most {most} a network; record it again"


@pytest.mark.parametrize(
    ("change", "downsampling", "numbers"),
    [({"V": 1000}, 1, 2 * 14 * 1000), ({"H": 100}, 1, 2 * 100 * 14**2), ({}, 64, 3 * (3 * 64) ** 2)],
)
def test_a_batch_is_refused_by_its_largest_tensor(
    change: dict[str, int], downsampling: int, numbers: int, monkeypatch: pytest.MonkeyPatch
):
    pyramid, config = ScalePyramid((1, 2, 3)), replace(transformer_config(Layout()), **change)
    monkeypatch.setattr(metadata, "MOST_NUMBERS", 5 * numbers)
    metadata.check_batch(5, pyramid, config, downsampling)
    with pytest.raises(InputError) as caught:
        metadata.check_batch(6, pyramid, config, downsampling)
    rule = f"must make tensors of at most {5 * numbers} numbers, not {6 * numbers}"
    assert str(caught.value) == f"images=6: {rule}; record it again"


@pytest.mark.parametrize("models", plan.files_of("cuda"))
def test_a_case_that_is_read_is_the_case_that_was_written(models: str):
    for case in plan.cases(models):
        values = json.loads(json.dumps(case.as_values()))
        assert GoldenCase.from_values(values) == case
        assert json.loads(json.dumps(GoldenCase.from_values(values).as_values())) == values
