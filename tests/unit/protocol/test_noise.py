"""Randomness by address: published order, any reading order, images that do not know their neighbours, the ledger."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from harness.errors import NoiseError
from harness.protocol._request import Request
from harness.protocol.noise import (
    ACCEPT,
    CORRECT,
    DRAFT,
    SMOOTH,
    TOKEN,
    ExclusiveNoise,
    Ledger,
    RecordedNumbers,
    RowsOf,
    SeededNoise,
    derive_seed,
)
from harness.protocol.pyramid import ScalePyramid

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
    for read in (numbers.exponential, numbers.uniform):
        with pytest.raises(
            NoiseError, match="stream=tokens: is no stream of numbers; pass one of token, smooth, draft, a"
        ):
            read(0, "tokens", "a")
    numbers.uniform(0, ACCEPT, "a")
    assert numbers.ledger.readers == {(0, ACCEPT): ["a"]}


def test_a_stream_of_its_own_has_a_seed_of_its_own():
    """The numbers are those of a generator seeded from the address: what another implementation must reproduce."""
    digest = hashlib.blake2b(b"5/1/draft", digest_size=8).digest()
    assert derive_seed(5, 1, DRAFT) == int.from_bytes(digest, "big") // 2
    numbers = noise(Request((0, 1), 5))
    generator = torch.Generator().manual_seed(derive_seed(5, 1, DRAFT))
    for si in PYRAMID:
        expected = torch.empty(PYRAMID.tokens(si), V).exponential_(generator=generator)
        assert torch.equal(numbers.exponential(si, DRAFT, "a")[1], expected)
    generator = torch.Generator().manual_seed(derive_seed(5, 0, ACCEPT))
    assert torch.equal(numbers.uniform(0, ACCEPT, "a")[0], torch.rand(1, generator=generator))


def test_in_batch_order_streams_beside_the_published_ones_have_generators_of_their_own():
    numbers = noise(Request((0, 1), 5, order="batch"))
    generator = torch.Generator().manual_seed(derive_seed(5, -1, CORRECT))
    expected = torch.empty(2, 1, V).exponential_(generator=generator)
    assert torch.equal(numbers.exponential(0, CORRECT, "a"), expected)
    generator = torch.Generator().manual_seed(derive_seed(5, -1, ACCEPT))
    assert torch.equal(numbers.uniform(0, ACCEPT, "a"), torch.rand(2, 1, generator=generator))


def test_labels_are_drawn_before_any_scale_and_once():
    numbers = noise(Request(None, 3, order="batch", count=4))
    assert numbers.labels(5) is numbers.labels(5)
    late = noise(Request(None, 3, order="batch", count=4))
    late.exponential(0, TOKEN, "a")
    with pytest.raises(NoiseError, match="labels=None: labels are drawn before any scale is read; ask for them first"):
        late.labels(5)
    given = noise(Request((2, 1), 3)).labels(5)
    assert (given.tolist(), given.dtype) == ([2, 1], torch.int64)


def test_where_conditions_are_texts_one_of_the_texts_is_drawn():
    texts = (torch.zeros(1, 2), torch.zeros(3, 2))
    labels_B = noise(Request(None, 3, order="batch", count=64, texts=texts)).labels(5)
    assert set(labels_B.tolist()) == {0, 1}


def test_the_uniform_of_an_exponential_is_its_distribution_function():
    numbers = noise(Request((0, 1), 5))
    first_Bl = numbers.exponential(2, TOKEN, "a")[..., 0]
    assert torch.equal(numbers.uniform(2, TOKEN, "a"), (-torch.expm1(-first_Bl)).clamp_max(1 - 2.0**-24))


def test_exclusive_numbers_are_refused_to_a_second_reader_and_entered_in_both_ledgers():
    ledger = Ledger()
    numbers = ExclusiveNoise(noise(Request((0, 1), 5), ledger))
    assert torch.equal(numbers.exponential(1, DRAFT, "draft"), noise(Request((0, 1), 5)).exponential(1, DRAFT, "a"))
    assert torch.equal(numbers.uniform(1, ACCEPT, "target"), noise(Request((0, 1), 5)).uniform(1, ACCEPT, "a"))
    assert numbers.labels(5).tolist() == [0, 1]
    numbers.exponential(1, DRAFT, "draft")
    assert ledger.readers == numbers.ledger.readers == {(1, DRAFT): ["draft"], (1, ACCEPT): ["target"]}
    said = "; under contract B every consumer reads a stream of its own"
    with pytest.raises(NoiseError, match=f"reader=target: the numbers of scale 1, stream draft belong to draft{said}"):
        numbers.exponential(1, DRAFT, "target")
    with pytest.raises(NoiseError, match="reader=draft: the numbers of scale 1, stream accept belong to target"):
        numbers.uniform(1, ACCEPT, "draft")
    numbers.exponential(2, DRAFT, "target")  # another scale


def test_a_ledger_is_shared_unless_it_is_exclusive():
    ledger = Ledger()
    for reader in ("a", "b", "a"):
        ledger.enter(0, TOKEN, reader)
    assert ledger.readers == {(0, TOKEN): ["a", "b"]}
    assert noise(Request((0,), 5)).ledger.exclusive is False
    one = Ledger(exclusive=True)
    one.enter(0, TOKEN, "a")
    one.enter(0, TOKEN, "a")
    assert one.readers == {(0, TOKEN): ["a"]}


def test_some_images_have_their_rows_of_a_batchs_numbers_and_enter_its_ledger():
    request = Request((2, 0, 1), 4)
    batch, whole, rows = noise(request), noise(request), torch.tensor([2, 0])
    some = RowsOf(batch, rows)
    assert torch.equal(some.labels(3), whole.labels(3)[rows])
    assert torch.equal(some.exponential(1, TOKEN, "one"), whole.exponential(1, TOKEN, "x")[rows])
    assert torch.equal(some.uniform(1, ACCEPT, "two"), whole.uniform(1, ACCEPT, "x")[rows])
    assert batch.ledger.readers == {(1, TOKEN): ["one"], (1, ACCEPT): ["two"]}


def test_recorded_numbers_go_to_the_images_that_they_were_drawn_for():
    known = Request((0, 1, 2), 7)
    E_BlV = torch.arange(12.0).view(3, 2, 2)
    kept = RecordedNumbers({"token/1": E_BlV}, known)
    some = Request((1, 0), 7, images=(2, 0))
    assert torch.equal(kept.rows(some, 1, "token"), E_BlV[[2, 0]])
    said = "^stream=token: the numbers of scale 1 for these images were not recorded$"
    for wrong in (Request((1,), 8), Request((1,), 7, images=(3,))):
        with pytest.raises(NoiseError, match=said):
            kept.rows(wrong, 1, "token")
    with pytest.raises(NoiseError, match="scale 2"):
        kept.rows(known, 2, "token")
    published = replace(known, order="batch")
    assert torch.equal(RecordedNumbers({"token/1": E_BlV}, published).rows(published, 1, "token"), E_BlV)
    with pytest.raises(NoiseError, match=said):  # what a batch draws depends on all of it
        RecordedNumbers({"token/1": E_BlV}, published).rows(replace(some, order="batch"), 1, "token")


def test_a_note_is_kept_as_it_was_said():
    numbers = noise(Request((0,), 1))
    numbers.note("scale 3")
    assert numbers.ledger.notes == ["scale 3"]
