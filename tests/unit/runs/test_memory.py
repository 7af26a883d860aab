"""The memory of an image, stated before it is decoded: what it grows with, what is said of it, what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.models.infinity.autoencoder import binary_config
from harness.models.infinity.checkpoint import parse_schedule
from harness.models.infinity.transformer import InfinityConfig
from harness.models.var.sizes import PUBLISHED, PUBLISHED_VAE
from harness.protocol.pyramid import ScalePyramid
from harness.runs import _plan as module
from harness.runs._plan import bytes_of_a_run, bytes_of_an_image, bytes_of_networks, memory_note
from tests.helpers import command, digits, tiny, twins

GIB = 2**30


def sizes_alone(target: Any, draft: Any, vae: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Return a pair that has sizes and no weights."""
    small, large = (SimpleNamespace(config=config, dtype=dtype, pyramid=config.pyramid) for config in (draft, target))
    codec = SimpleNamespace(config=vae, dtype=torch.float32, weights={})
    return SimpleNamespace(draft=small, target=large, vae=codec, pyramid=target.pyramid, device=torch.device(device))


def infinity(schedule: str, device: str = "cpu", channels: int = 32, dtype: torch.dtype = torch.float32) -> Any:
    """Return a pair of the sizes of 2B."""
    pyramid = ScalePyramid(sides=parse_schedule(schedule).sides, channels=channels)
    config = InfinityConfig(pyramid, 32, 2048, 16, channels, 2048, 512, 4 * 2048, 16, chunks=8)
    return sizes_alone(config, config, binary_config(channels, 128, (1, 2, 4, 4, 4)), device, dtype)


def test_an_image_of_published_sizes_at_1m_fits_an_h200_beside_its_networks():
    networks = 2 * 8.9 * 10**9
    assert 25 * GIB < bytes_of_an_image(infinity("1.0/1M", "cuda")) < 45 * GIB
    assert networks + bytes_of_an_image(infinity("1.0/1M", "cuda")) < 65 * GIB
    assert bytes_of_an_image(sizes_alone(PUBLISHED["d30"], PUBLISHED["d16"], PUBLISHED_VAE, "cuda")) < 4 * GIB


def test_keys_inputs_and_masks_go_by_position_and_logits_by_draw():
    """With one bit a position an image takes as many keys, and fewer logits: no factor of 32 anywhere."""
    many, few = (bytes_of_an_image(infinity("1.0/0.25M", channels=channels)) for channels in (32, 1))
    positions = ScalePyramid(sides=parse_schedule("1.0/0.25M").sides).L
    assert 0 < many - few < 31 * positions * 2 * 4 * 50
    keys = 4 * 32 * positions * 2048 * 4  # of one network
    assert 3 * keys < many < 5 * keys


def test_the_statement_grows_with_scales_depth_dtype_and_pixels():
    sizes = [bytes_of_an_image(infinity(f"1.0/{size}")) for size in ("0.06M", "0.25M", "0.60M", "1M")]
    assert sizes == sorted(set(sizes))
    assert bytes_of_an_image(infinity("1.0/1M", dtype=torch.bfloat16)) < sizes[-1]
    assert bytes_of_a_run(infinity("1.0/0.25M", "cuda")) > sizes[1]  # where float64 holds all scores
    assert bytes_of_a_run(infinity("1.0/1M"), 3) == 3 * sizes[-1]
    large, small = PUBLISHED["d30"], PUBLISHED["d16"]
    plain = bytes_of_an_image(sizes_alone(large, small, PUBLISHED_VAE))
    assert bytes_of_an_image(sizes_alone(large, replace(small, depth=32), PUBLISHED_VAE)) > plain
    assert bytes_of_an_image(sizes_alone(large, small, replace(PUBLISHED_VAE, ch=16000))) > plain


def test_weights_that_two_networks_share_count_once():
    models = tiny()
    assert bytes_of_networks(twins(models)) < bytes_of_networks(models)
    assert bytes_of_networks(models) == sum(4 * weight.numel() for weight in models.named_weights().values())


@pytest.mark.parametrize(("times", "said"), [(5, False), (3, True), (1, True)])
def test_of_an_image_that_takes_more_than_a_quarter_it_is_said(monkeypatch: pytest.MonkeyPatch, times: int, said: bool):
    models = digits()
    monkeypatch.setattr(module, "available_bytes", lambda: times * bytes_of_a_run(models))
    note = memory_note(models, own_process=False)
    assert bool(note) is said
    assert not said or note.endswith("GiB free on cpu")


def test_networks_of_a_process_of_its_own_count_once_more(monkeypatch: pytest.MonkeyPatch):
    models = digits()
    both = bytes_of_a_run(models) + bytes_of_networks(models)
    monkeypatch.setattr(module, "available_bytes", lambda: 4 * both - 4)
    assert not memory_note(models, own_process=False)
    assert memory_note(models, own_process=True)
    monkeypatch.setattr(module, "available_bytes", lambda: 4 * both)
    assert not memory_note(models, own_process=True)


def test_measuring_rounding_counts_its_images_and_the_autoencoder_in_float64():
    small = tiny()  # eight images are measured
    wide = module.bytes_of_a_pass(small, torch.float64)
    codec = 8 * sum(weight.numel() for weight in small.vae.weights.values())
    assert bytes_of_a_run(small) >= 8 * wide + codec


def test_verify_says_it_on_stderr_and_refuses_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked = "verify", "--draft-len", "2", "--seeds", "0", "--labels", "0", "--laws", "0"
    monkeypatch.setattr(module, "available_bytes", lambda: 3 * bytes_of_a_run(digits()))
    assert command(monkeypatch, *asked) == 0
    assert (
        "an image takes 0.1 GiB at most while it is decoded and judged, of 0.3 GiB free on cpu"
        in capsys.readouterr().err
    )
    assert command(monkeypatch, *asked, "--quiet") == 0
    assert "an image takes" not in capsys.readouterr().err
    monkeypatch.setattr(module, "available_bytes", lambda: 1000)  # a bound refuses nobody
    assert command(monkeypatch, *asked) == 0
    assert "of 0.0 GiB free on cpu" in capsys.readouterr().err


def test_a_decoder_with_a_process_of_its_own_has_smaller_batches_by_what_both_take(monkeypatch: pytest.MonkeyPatch):
    sizes = sizes_alone(PUBLISHED["d30"], PUBLISHED["d16"], PUBLISHED_VAE, "cuda")
    assert bytes_of_an_image(sizes) < bytes_of_an_image(sizes, own_process=True) < 1.5 * bytes_of_an_image(sizes)
    monkeypatch.setattr(module, "free_on_cuda", lambda device: 100 * GIB)
    monkeypatch.setattr(module, "bytes_of_networks", lambda models: 20 * GIB)
    within, apart = (module.default_batch(sizes, own_process).images for own_process in (False, True))
    assert within == int(0.6 * 100 * GIB // bytes_of_an_image(sizes))
    assert apart == int(0.5 * 80 * GIB // bytes_of_an_image(sizes, own_process=True))
    assert within / 2.5 < apart < within
    monkeypatch.setattr(module, "bytes_of_networks", lambda models: 200 * GIB)
    assert module.default_batch(sizes, own_process=True).images == 1  # the decode itself says what lacks
