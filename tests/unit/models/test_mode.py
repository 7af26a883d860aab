"""Modes of networks by name; what is computed inside torch.autocast, and what is not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.judge import Verdict
from harness.models import MODES, ModelPair, mode_name, product_dtype
from harness.protocol import Request, Settings
from harness.protocol.pyramid import ScalePyramid
from harness.reference import guidance_labels
from harness.reference.sequential import GrowingCache, sample_sequential
from harness.report._terminal import _title
from harness.rounding import quick_budget
from harness.runs._identity import identity_of
from harness.speculative.sampler import build_decoder
from tests.helpers import LAYOUTS, Layout, tiny, verify_here
from tests.toy import toy_pair

MODELS, REQUEST, FOUR = tiny(), Request((0, 1), 0), Layout((1, 2, 3, 4))
AUTOCAST = [name for name, (_, dtype) in MODES.items() if dtype is not None]


def tensors(models: ModelPair) -> dict[str, Tensor]:
    """Return all that a sequential decode computes, and the image."""
    trace = sample_sequential(models.target, models.vae, REQUEST, models.noise(REQUEST))
    return {**trace.shown.named(), "image": models.vae.decode(trace.f_hat_BCPP)}


@pytest.mark.parametrize("name", MODES)
def test_a_mode_has_one_name_for_either_network(name: str):
    pair = MODELS.in_mode("cpu", name)
    assert (mode_name(pair.target), mode_name(pair.draft)) == (name, name)
    assert pair.target.dtype == MODES[name][0]
    assert pair.vae.dtype == torch.promote_types(pair.target.dtype, torch.float32)
    assert product_dtype(pair.target) == (MODES[name][1] or MODES[name][0])
    mixed = MODELS.in_mode("cpu", "float32", name)
    assert (mode_name(mixed.target), mode_name(mixed.draft), mode_name(mixed.vae)) == ("float32", name, "float32")


@pytest.mark.parametrize("name", AUTOCAST)
@pytest.mark.parametrize("layout", ["plain", "shared-adaln", "no-l2norm"])
def test_it_is_what_the_same_networks_compute_inside_autocast(layout: str, name: str):
    plain = tiny(LAYOUTS[layout])
    inside = tensors(plain.in_mode("cpu", name))
    with torch.autocast("cpu", MODES[name][1]):
        expected = tensors(plain)
    exact = tensors(plain)
    for key in ("x_RLD", "rows_RLV", "guided_BLV", "f_hat_SBCPP"):
        assert inside[key].dtype == torch.float32
        assert torch.equal(inside[key], expected[key]), key
        assert not torch.equal(inside[key], exact[key]), key


def test_pixels_and_whatever_is_made_of_it_are_outside():
    pair, f_hat = MODELS.in_mode("cpu", "autocast-bfloat16"), torch.ones(1, *MODELS.target.config.latent)
    assert torch.equal(pair.vae.decode(f_hat), MODELS.vae.decode(f_hat))
    for other in (pair.to("cpu"), pair.wide(), replace(pair, target=pair.target.converted(torch.float32))):
        assert "autocast" not in mode_name(other.target)
    assert "autocast" not in mode_name(pair.vae.to("cpu", torch.float32))
    assert mode_name(pair.first_scales(2).target) == "autocast-bfloat16"


@pytest.mark.parametrize("layout", ["plain", "no-l2norm"])
def test_keys_values_and_inputs_have_the_dtype_of_the_weights(layout: str):
    network, kept = tiny(LAYOUTS[layout]).in_mode("cpu", "autocast-float16").target, GrowingCache()
    condition = network.condition(guidance_labels(torch.tensor([0]), network.config.classes))
    x_RlD = network.embed(torch.ones(2, 1, network.config.C))
    h_RlD = network.hidden(x_RlD, condition, kept, None)
    every = (x_RlD, h_RlD, network.logits(h_RlD, condition), *(kv for layer in kept.layers.values() for kv in layer))
    assert {tensor.dtype for tensor in every} == {torch.float32}


@pytest.mark.parametrize("name", MODES)
def test_a_raw_input_is_embedded_to_the_same_bits_however_it_lies_in_memory(name: str):
    network = MODELS.in_mode("cpu", name).target
    raw_BCn = torch.randn(2, network.config.C, 9, generator=torch.Generator().manual_seed(0))
    by_channel_BnC = raw_BCn.transpose(1, 2)
    assert torch.equal(network.embed(by_channel_BnC), network.embed(by_channel_BnC.contiguous()))
    if name == "bfloat16":  # two roundings, as published samplers make them
        w, raw_BnC = network.weights, by_channel_BnC.bfloat16().contiguous()
        product_BnD = torch.nn.functional.linear(raw_BnC, w["word_embed.weight"])
        assert torch.equal(network.embed(by_channel_BnC), product_BnD + w["word_embed.bias"])
        assert not torch.equal(
            network.embed(by_channel_BnC),
            torch.nn.functional.linear(raw_BnC, w["word_embed.weight"], w["word_embed.bias"]),
        )


@pytest.mark.parametrize("name", AUTOCAST)
def test_the_own_decoder_is_right_where_images_part(name: str):
    models, requests = tiny(FOUR, kin=0.02).in_mode("cpu", name), [Request((0, 1, 2), 3)]
    result = verify_here(models, build_decoder, [Settings(2, bonus=True)], requests)
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE), result.first_divergence
    assert result.coverage.diverged
    document = json.loads(result.to_json())
    assert (document["dtype"], document["draft_dtype"], result.dtype) == (name, name, torch.float32)
    assert _title(result) == f"tiny on cpu, {name}"
    assert identity_of(models, ("m:f", Settings(2))).differences(
        identity_of(tiny(FOUR), ("m:f", Settings(2))), ["mode"]
    ) == [
        f"mode draft_dtype (here {name}, recorded float32)",
        f"mode dtype (here {name}, recorded float32)",
    ]


@pytest.mark.parametrize(
    ("mode", "draft", "said"),
    [
        ("half", "", "dtype=half: must be one of float64, float32, bfloat16, float16, autocast-bfloat16, "
         "autocast-float16; pass --dtype float32"),
        ("float32", "amp", "draft_dtype=amp: must be one of float64, float32, bfloat16, float16, autocast-bfloat16, "
         "autocast-float16; pass --draft-dtype float32"),
    ],
)  # fmt: skip
def test_another_word_is_refused(mode: str, draft: str, said: str):
    with pytest.raises(InputError) as caught:
        MODELS.in_mode("cpu", mode, draft)
    assert str(caught.value) == said


def test_other_networks_than_those_of_var_are_refused():
    toys = toy_pair(ScalePyramid((1, 2)), 5, 0)
    assert toys.in_mode("cpu", "float32").target.dtype == torch.float32
    with pytest.raises(InputError) as caught:
        toys.in_mode("cpu", "autocast-float16")
    assert str(caught.value) == "dtype=autocast-float16: is a mode of networks of VAR alone; pass --dtype bfloat16"


def test_the_harness_inside_somebodys_autocast_is_refused():
    """Its own networks would compute in it, and a decoder in another process would not."""
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError) as caught:
        quick_budget(MODELS)
    said = "torch.autocast=on: is around the harness, where networks have a mode of their own"
    assert str(caught.value) == f"{said}; leave it, and pass models.in_mode('cpu', 'autocast-…')"
