"""Randomness by address: published order, any reading order, images that do not know their neighbours, the ledger."""

from __future__ import annotations

import pytest
import torch

from harness.errors import NoiseError
from harness.protocol.noise import ACCEPT, CORRECT, DRAFT, SMOOTH, TOKEN, Ledger, SeededNoise
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request

PYRAMID, V, CPU = ScalePyramid((1, 2, 3)), 11, torch.device("cpu")


def noise(request: Request, ledger: Ledger | None = None) -> SeededNoise:
    return SeededNoise(request, PYRAMID, V, CPU, ledger)


@pytest.mark.parametrize("smooth", [False, True])
def test_the_published_order_is_that_of_multinomial(smooth: bool):
    numbers = noise(Request((0, 1), 7, order="batch", more_smooth=smooth))
    generator = torch.Generator().manual_seed(7)
    for si in PYRAMID:
        rows = 2 * PYRAMID.tokens(si)
        probs_NV = torch.rand(rows, V, generator=torch.Generator().manual_seed(si)).softmax(-1)
        expected_N = torch.multinomial(probs_NV, 1, generator=generator)[:, 0]
        E_NV = numbers.exponential(si, TOKEN, "test").view(rows, V)
        assert torch.equal((probs_NV / E_NV).argmax(1), expected_N)
        if smooth:
            expected = torch.empty(2, PYRAMID.tokens(si), V).exponential_(1, generator=generator)
            assert torch.equal(numbers.exponential(si, SMOOTH, "test"), expected)


def test_labels_that_are_not_given_are_drawn_first():
    numbers = noise(Request(None, 3, order="batch", count=4))
    generator = torch.Generator().manual_seed(3)
    expected_1B = torch.multinomial(torch.full((1, 5), 0.2), 4, replacement=True, generator=generator)
    assert torch.equal(numbers.labels(5), expected_1B[0])
    expected = torch.empty(4, 1, V).exponential_(1, generator=generator)
    assert torch.equal(numbers.exponential(0, TOKEN, "test"), expected)


@pytest.mark.parametrize("order", ["image", "batch"])
def test_scales_may_be_read_in_any_order_and_again(order: str):
    request = Request((0, 1), 5, order=order)
    forward, backward = noise(request), noise(request)
    expected = [forward.exponential(si, TOKEN, "a").clone() for si in PYRAMID]
    for si in (2, 0, 1, 2):
        assert torch.equal(backward.exponential(si, TOKEN, "b"), expected[si])
    assert len({float(E.sum()) for E in expected}) == PYRAMID.S


def test_an_image_does_not_depend_on_its_neighbours_or_its_place():
    both, alone = noise(Request((0, 1), 5)), noise(Request((1,), 5, images=(1,)))
    swapped = noise(Request((1, 0), 5, images=(1, 0)))
    for si in PYRAMID:
        E_BlV = both.exponential(si, TOKEN, "a")
        assert torch.equal(alone.exponential(si, TOKEN, "a")[0], E_BlV[1])
        assert torch.equal(swapped.exponential(si, TOKEN, "a"), E_BlV.flip(0))
        assert not torch.equal(E_BlV[0], E_BlV[1])


def test_another_seed_gives_other_numbers():
    assert not torch.equal(*(noise(Request((0,), seed)).exponential(0, TOKEN, "a") for seed in (0, 1)))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    noise(Request((0, 1), 5)).exponential(2, TOKEN, "a")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_ledger_remembers_and_an_exclusive_one_refuses():
    shared, exclusive = Ledger(), Ledger(exclusive=True)
    numbers = noise(Request((0,), 5), shared)
    numbers.exponential(1, TOKEN, "draft")
    numbers.exponential(1, TOKEN, "target")
    assert shared.readers[1, TOKEN] == ["draft", "target"]
    numbers = noise(Request((0,), 5), exclusive)
    numbers.exponential(1, TOKEN, "draft")
    numbers.exponential(1, TOKEN, "draft")
    with pytest.raises(NoiseError, match="reader=target: the numbers of scale 1, stream token belong to draft"):
        numbers.exponential(1, TOKEN, "target")


@pytest.mark.parametrize("order", ["image", "batch"])
@pytest.mark.parametrize("stream", [TOKEN, SMOOTH, DRAFT, ACCEPT, CORRECT])
def test_the_uniforms_of_every_stream_are_uniform(stream: str, order: str):
    request = Request((0,) * 40, 5, order=order, more_smooth=stream == SMOOTH)
    numbers = SeededNoise(request, ScalePyramid((1, 16)), 3, CPU)
    u_Bl = numbers.uniform(1, stream, "a")
    assert (u_Bl.shape, u_Bl.dtype) == ((40, 256), torch.float32)
    assert 0 <= float(u_Bl.min()) < 0.01
    assert 0.99 < float(u_Bl.max()) < 1
    # 10,240 numbers: standard errors of mean and variance are 0.0029 and 0.00074
    assert float(u_Bl.mean()) == pytest.approx(1 / 2, abs=0.012)
    assert float(u_Bl.var()) == pytest.approx(1 / 12, abs=0.003)
    assert torch.equal(numbers.uniform(1, stream, "a"), u_Bl)


def test_a_uniform_is_below_one_whatever_the_exponential(monkeypatch: pytest.MonkeyPatch):
    numbers = noise(Request((0,), 5))
    monkeypatch.setattr(numbers, "_draw", lambda si, stream: torch.full((1, 1, V), 80.0))
    assert float(numbers.uniform(0, TOKEN, "a")) == float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))


def test_a_uniform_is_entered_in_the_ledger_and_no_exponential_is_made_of_it():
    numbers = noise(Request((0,), 5))
    with pytest.raises(NoiseError, match="stream=accept: holds one uniform number a token; read it with uniform"):
        numbers.exponential(0, ACCEPT, "a")
    assert numbers.ledger.readers == {}
    numbers.uniform(0, ACCEPT, "a")
    assert numbers.ledger.readers == {(0, ACCEPT): ["a"]}
