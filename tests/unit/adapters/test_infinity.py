"""Infinity's own sampler under test: a stand-in written from the interface page, and the real one where it is."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import Settings, Verdict, Verification
from harness.decoders._factory import load_factory
from harness.errors import InputError
from harness.models import ModelPair
from harness.protocol import Request
from tests.helpers import tiny, verify_here
from tests.published.checkout import make
from tests.unit.judge.planted_infinity import REQUESTS, at
from tests.unit.speculative.test_infinity import REQUEST, pair

REAL = os.environ.get("INFINITY_CHECKOUT", "")  # of the published code
PLAIN = [replace(request, filters=()) for request in REQUESTS]  # it has one filter for all scales


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkouts")


def settings(checkout: Path | str, **options: str) -> Settings:
    return Settings("", False, "", (("checkout", str(checkout)), *options.items()))


def run(checkout: Path | str, models: ModelPair, requests: list[Request], **options: str) -> Verification:
    factory = load_factory("published:infinity")
    return verify_here(models, factory, [settings(checkout, **options)], requests, sequential=True)


def single(**options: object) -> ModelPair:
    return pair(dtype=torch.float32, **options)


@pytest.mark.parametrize("options", [{}, {"patch": 2, "levels_once": False}], ids=["plain", "patchified"])
def test_a_right_sampler_is_identical(shelf: Path, options: dict[str, object]):
    result = run(make(shelf, "infinity"), single(**options), PLAIN)
    assert result.verdict is Verdict.IDENTICAL, result.first_divergence


@pytest.mark.filterwarnings("ignore:.*autocast.*:FutureWarning")  # the published code's own
@pytest.mark.skipif(not REAL, reason="INFINITY_CHECKOUT names no checkout of the published code")
@pytest.mark.parametrize("options", [{}, {"patch": 2, "levels_once": False, "shared_adaln": False}, {"l2_norm": False}])
def test_the_published_sampler_is_identical(options: dict[str, object]):
    result = run(REAL, single(**options), PLAIN)
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE), result.first_divergence


def test_layers_without_fused_norm_sit_where_the_image_begins(shelf: Path):
    result = run(make(shelf, "infinity"), single(), [REQUEST], **{"init.fused_norm": "false"})
    assert result.first_divergence is not None
    assert result.first_divergence.component == "positions"


def test_numbers_of_its_own_are_those_of_the_published_order(shelf: Path):
    request = replace(REQUEST, order="batch")
    assert run(make(shelf, "infinity"), single(), [request], numbers="own").verdict is Verdict.IDENTICAL


def test_nothing_stays_of_modules_that_stand_for_others(shelf: Path):
    run(make(shelf, "infinity"), single(), [REQUEST])
    assert not {"flash_attn", "infinity", "timm"} & set(sys.modules)


BAD = {
    "filters by scale": (
        "infinity", single, replace(REQUESTS[3], negative_texts=()), "filters=", "published code has one filter for all"
    ),
    "half precision": ("infinity", pair, REQUEST, "dtype=float64", "float32 alone"),
    "one chunk": (
        "infinity", lambda: replace(single(), target=single().draft), REQUEST, "chunks=1", "several chunks of blocks"
    ),
    "another family": ("infinity", tiny, Request((0,)), "family=var", "is not Infinity"),
    "code of another family": ("var", single, REQUEST, "checkout=", "holds no infinity/models/infinity.py"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_it_cannot_be_asked_is_refused_in_one_line(shelf: Path, name: str):
    kind, models, request, value, rule = BAD[name]
    with pytest.raises(InputError) as caught:
        run(make(shelf, kind), models(), [request])
    assert str(caught.value).startswith(value)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_samplers_of_var_refuse_networks_of_infinity(shelf: Path):
    with pytest.raises(InputError, match="is not of VAR"):
        verify_here(single(), load_factory("published:var"), [settings(make(shelf, "var"))], [REQUEST], sequential=True)


# what is wrong in the checkout -> the component that must be named
MISTAKES = {
    "next-text": "text",
    "negative-ignored": "text",
    "unconditional-long": "unconditional length",
    "input-area": "resize",
    "codes-nearest": "resize",
    "bits-reversed": "bits",
    "bits-negated": "bits",
    "shuffle-turned": "bits",
    "level-early": "level",
    "angles-anew": "positions",
    "axes-exchanged": "positions",
    "place-late": "guidance place",
    "weight-early": "guidance",
    "red-first": "image",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(shelf: Path, mistake: str):
    request = {"negative-ignored": PLAIN[3], "place-late": at(-2)}.get(mistake, REQUEST)
    models = single(patch=2 if mistake == "shuffle-turned" else 1)
    first = run(make(shelf, "infinity", mistake), models, [request]).first_divergence
    assert first is not None
    assert first.component == MISTAKES[mistake], first
