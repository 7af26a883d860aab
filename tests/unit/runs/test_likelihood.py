"""A stream of tokens under the likelihood test: what it takes, what it keeps, what it says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness import InputError, LikelihoodTest, ModelPair, Request, Verdict
from harness.reference.sequential import sample_sequential
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
REQUEST = Request((0,), cfg=2.0)


def drawn(images: int, models: ModelPair = MODELS, first: int = 0, **changed: float) -> Tensor:
    """Return tokens of the sequential sampler, labels 0, 1, 2, 0, …"""
    request = replace(labelled(images), images=tuple(range(first, first + images)), **changed)
    return sample_sequential(models.target, models.vae, request, models.noise(request)).tokens_BL


def labelled(images: int) -> Request:
    return replace(REQUEST, labels=labels(images))


def labels(images: int) -> tuple[int, ...]:
    return tuple(b % 3 for b in range(images))


def test_tokens_of_the_target_prove_nothing_against_it():
    test = LikelihoodTest(MODELS, REQUEST)
    assert test.verdict is Verdict.INCONCLUSIVE
    for first in range(0, 64, 16):
        test.take(drawn(16, first=first), labels(16))
    assert (test.images, test.verdict) == (64, Verdict.INCONCLUSIVE)
    assert "images prove little" in str(test)


def test_tokens_under_another_guidance_are_a_defect_that_is_named():
    test = LikelihoodTest(MODELS, REQUEST)
    for first in range(0, 2048, 128):
        test.take(drawn(128, first=first, cfg=4.0), labels(128))
        if test.verdict is Verdict.DEFECT:
            break
    assert test.verdict is Verdict.DEFECT
    assert "as if guidance were 2.5" in str(test)


def test_the_same_image_again_and_again_is_found():
    test = LikelihoodTest(MODELS, REQUEST)
    image_1L = drawn(1)
    for _ in range(8):
        test.take(image_1L, (0,))
    assert test.verdict is Verdict.DEFECT
    assert "the image before" in str(test)


def test_a_token_without_probability_is_placed():
    filtered = replace(REQUEST, top_k=1)
    test = LikelihoodTest(MODELS, filtered)
    tokens_BL = drawn(3, top_k=1).clone()
    tokens_BL[2, 4] = (tokens_BL[2, 4] + 1) % 11
    test.take(tokens_BL, labels(3))
    assert test.verdict is Verdict.DEFECT
    assert str(test).startswith("DEFECT: image 2, position 4: token ")


def test_it_goes_on_from_its_file_as_if_it_had_never_stopped(tmp_path: Path):
    whole, file = LikelihoodTest(MODELS, REQUEST), tmp_path / "state.json"
    for first in range(0, 24, 8):
        whole.take(drawn(8, first=first), labels(8))
        LikelihoodTest(MODELS, REQUEST, file=file).take(drawn(8, first=first), labels(8))
    again = LikelihoodTest(MODELS, REQUEST, file=file)
    assert again.images == 24
    assert torch.equal(again.wealth.won_AT, whole.wealth.won_AT)
    assert str(again) == str(whole)
    assert file.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("tokens", "named", "message"),
    [
        (torch.zeros(2, 13), (0, 1), r"tokens=\(2, 13\): must be \(images, 14\)"),
        (torch.zeros(2, 14, dtype=torch.int64), (0,), r"must be \(images, 14\), with a label an image \(1\)"),
        (torch.zeros(0, 14, dtype=torch.int64), (), r"must be \(images, 14\)"),
        (torch.zeros(1, 14), (0,), "tokens=torch.float32: must be integers"),
        (torch.zeros(1, 14, dtype=torch.complex128), (0,), "tokens=torch.complex128: must be integers"),
        (torch.full((1, 14), 11), (0,), r"tokens\[0, 0\]=11: must lie in 0..10"),
        (torch.full((1, 14), -1, dtype=torch.int16), (0,), r"tokens\[0, 0\]=-1"),
        (torch.zeros(1, 14, dtype=torch.int64), (4,), r"labels\[0\]=4: must lie in 0..3"),
    ],
)
def test_what_cannot_be_is_bad_input_and_counts_nothing(
    tokens: Tensor, named: tuple[int, ...], message: str, tmp_path: Path
):
    test = LikelihoodTest(MODELS, REQUEST, file=tmp_path / "state.json")
    with pytest.raises(InputError, match=message):
        test.take(tokens, named)
    assert test.images == 0
    assert not (tmp_path / "state.json").exists()


def state(tmp_path: Path) -> Path:
    file = tmp_path / "state.json"
    LikelihoodTest(MODELS, REQUEST, file=file).take(drawn(2), labels(2))
    return file


def test_a_state_of_others_is_refused(tmp_path: Path):
    file = state(tmp_path)
    with pytest.raises(InputError, match="is the state of other request"):
        LikelihoodTest(MODELS, replace(REQUEST, cfg=2.5), file=file)
    with pytest.raises(InputError, match="is the state of other weights"):
        LikelihoodTest(tiny(Layout((1, 2, 3)), seed=5), REQUEST, file=file)
    with pytest.raises(InputError, match="is the state of other alpha"):
        LikelihoodTest(MODELS, REQUEST, alpha=1e-3, file=file)


@pytest.mark.parametrize(
    "tampered",
    [
        {"won": [[1.0]]},
        {"under": "many"},
        {"images": -1},
        {"images": True},
        {"forbidden": 0.5},
        {"highest": "inf"},
        {"last": [1, 2]},
        {"last": [[0, 1]] * MODELS.pyramid.draws.L},
        {"last": [[]]},
        {"last": [-1] * MODELS.pyramid.draws.L},
        {"last": [MODELS.target.config.V] * MODELS.pyramid.draws.L},
        {"highest": 10**400},
        {"highest": None},
    ],
)
def test_a_tampered_state_is_refused(tampered: dict[str, object], tmp_path: Path):
    file = state(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **tampered}))
    with pytest.raises(InputError, match="is no state of a likelihood test"):
        LikelihoodTest(MODELS, REQUEST, file=file)


def test_a_state_of_absurd_size_says_that_no_number_of_images_suffices(tmp_path: Path):
    file = state(tmp_path)
    values = json.loads(file.read_text())
    values["under"][2] = [1e308] * len(values["under"][2])
    file.write_text(json.dumps(values))
    test = LikelihoodTest(MODELS, REQUEST, file=file)
    assert math.inf in test.images_to_find().values()
    assert str(test)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weights": 1', b"\xff\xfe"])
def test_a_file_that_is_no_state_is_refused(content: bytes, tmp_path: Path):
    file = tmp_path / "state.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match="file="):
        LikelihoodTest(MODELS, REQUEST, file=file)


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan"), -1.0])
def test_alpha_is_a_chance(alpha: float):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        LikelihoodTest(MODELS, REQUEST, alpha=alpha)
