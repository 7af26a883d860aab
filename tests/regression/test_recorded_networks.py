"""The networks alone against recordings: the encoder on real images, the published sizes, exact parameter counts."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.network import TransformerConfig
from harness.models.var import autoencoder, transformer
from harness.models.var.autoencoder import Autoencoder
from harness.models.var.sizes import PUBLISHED, PUBLISHED_VAE, count_scalars, fill_bits, filled_weights
from harness.models.var.transformer import Transformer
from harness.protocol.pyramid import ScalePyramid
from harness.reference._cachefree import prefix_inputs
from harness.reference._steps import block_causal
from harness.reference._var import accumulate
from harness.reference.sequential import GrowingCache
from tests.helpers import digits, recorded

COMPONENT = "networks"  # where nothing more exact is known

# What is recorded is float32 on another machine; 1e-3 of the largest value is the bound that the issue sets.
RELATIVE = 1e-3
# Nearest-code distances are differences of sums near 40: a few float32 units of that are rounding.
SEARCH_TIE = 1e-4


def relative(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    assert expected.numel() > 0
    assert bool(torch.isfinite(actual).all())
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def encoded() -> tuple[Tensor, Tensor, Tensor]:
    """Images in [-1, 1], their latent maps, and the recorded tokens."""
    tensors = recorded("encode-cpu")[0]
    image_B1hw = F.pad(tensors["images_u8"].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)[:, None]
    image_B3hw = image_B1hw.expand(-1, 3, -1, -1).contiguous()
    with torch.inference_mode():
        latents = torch.cat([digits().vae.image_to_latent(part) for part in image_B3hw.split(50)])
    return image_B3hw, latents, tensors["tokens"].long()


def test_the_encoder_finds_the_recorded_tokens_or_ties(encoded: tuple[Tensor, Tensor, Tensor]):
    _, residual, tokens_BL = encoded
    vae, pyramid = digits().vae, digits().pyramid
    assert tokens_BL.shape == (200, pyramid.L)
    compared = 0
    for si, pn in enumerate(pyramid.patch_nums):
        # residual by residual from the recorded tokens, so that one tie does not cascade; distances in float64
        map_BCpp = F.interpolate(residual, size=(pn, pn), mode="area") if pn < pyramid.P else residual
        flat_NC = map_BCpp.permute(0, 2, 3, 1).reshape(-1, vae.config.C).double()
        distance_NV = torch.cdist(flat_NC, vae.quantizer.codebook_VC.double()).square()
        recorded_N = tokens_BL[:, pyramid.span(si)].reshape(-1)
        excess_N = distance_NV.gather(1, recorded_N[:, None])[:, 0] - distance_NV.min(1).values
        assert float(excess_N.max()) <= SEARCH_TIE, f"scale {si}"
        compared += len(excess_N)
        with torch.inference_mode():
            residual = residual - vae.quantizer.upsampled(tokens_BL[:, pyramid.span(si)], si, pyramid)
    assert compared == 200 * pyramid.L


def test_the_free_running_encoder_differs_only_behind_a_tie(encoded: tuple[Tensor, Tensor, Tensor]):
    _, latents, tokens_BL = encoded
    with torch.inference_mode():
        found_BL, margin_BL = digits().vae.quantizer.encode(latents, digits().pyramid)
    for image in torch.nonzero((found_BL != tokens_BL).any(1)).flatten().tolist():
        first = int(torch.nonzero(found_BL[image] != tokens_BL[image])[0])
        assert float(margin_BL[image, first]) <= SEARCH_TIE
    assert float((found_BL == tokens_BL).float().mean()) > 0.99


def test_the_reconstruction_is_the_recorded_one(encoded: tuple[Tensor, Tensor, Tensor]):
    image_B3hw, _, tokens_BL = encoded
    vae, pyramid = digits().vae, digits().pyramid
    with torch.inference_mode():
        f_hat = torch.zeros(200, vae.config.C, pyramid.P, pyramid.P)
        for si in pyramid:
            codes = vae.quantizer.codes(tokens_BL[:, pyramid.span(si)], pyramid.patch_nums[si])
            f_hat = accumulate(f_hat, codes, si, vae.quantizer, pyramid)
        out = torch.cat([vae.latent_to_raw_image(part).clamp(-1, 1) for part in f_hat.split(50)])
    expected = recorded("encode-cpu")[0]["reconstruction"]
    assert out[:16].shape == expected.shape
    assert float((out[:16] - expected).abs().max()) <= 1e-4
    assert round(float((out - image_B3hw).abs().mean()), 3) == 0.018


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("d16", 310_283_520),
        ("d20", 600_917_136),
        ("d24", 1_033_399_360),
        ("d30", 2_010_020_356),
        ("d36", 2_353_893_904),
    ],
)
def test_published_transformers_have_their_exact_parameter_counts(name: str, parameters: int):
    assert count_scalars(transformer.transformer_shapes(PUBLISHED[name])) == parameters


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_state_dicts_have_their_exact_number_of_entries(name: str):
    config = PUBLISHED[name]
    entries = len(transformer.transformer_shapes(config)) + len(transformer.buffer_names(config))
    assert entries == (12 * config.depth + 14 if config.shared_adaln else 13 * config.depth + 12)


def test_the_published_autoencoder_has_its_exact_parameter_count():
    assert count_scalars(autoencoder.autoencoder_shapes(PUBLISHED_VAE)) == 108_948_355


@pytest.fixture(scope="module")
def published_vae() -> Autoencoder:
    return Autoencoder(PUBLISHED_VAE, filled_weights(autoencoder.autoencoder_shapes(PUBLISHED_VAE)))


@pytest.mark.slow
@torch.inference_mode()
def test_the_published_autoencoder_decodes_and_encodes_as_recorded(published_vae: Autoencoder):
    tensors, pyramid = recorded("published-sizes-cpu")[0], PUBLISHED["d16"].pyramid
    tokens_BL = tensors["vae/tokens"].long()
    hashed = torch.from_numpy(fill_bits(1, pyramid.L).astype("int64")) % PUBLISHED_VAE.V
    assert torch.equal(tokens_BL[0], hashed)
    f_hat = torch.zeros(1, PUBLISHED_VAE.C, pyramid.P, pyramid.P)
    for si in pyramid:
        codes = published_vae.quantizer.codes(tokens_BL[:, pyramid.span(si)], pyramid.patch_nums[si])
        f_hat = accumulate(f_hat, codes, si, published_vae.quantizer, pyramid)
    assert relative(f_hat, tensors["vae/f_hat"]) <= RELATIVE
    image = published_vae.latent_to_raw_image(f_hat)
    assert relative(F.avg_pool2d(image, 8), tensors["vae/decoded_before_clamp_pooled"]) <= RELATIVE
    assert relative(image[..., :16, :16], tensors["vae/decoded_before_clamp_corner"]) <= RELATIVE
    into = (image / image.std()).tanh()
    assert relative(into[..., :16, :16], tensors["vae/encoder_input_corner"]) <= RELATIVE
    assert relative(published_vae.image_to_latent(into), tensors["vae/encoded"]) <= RELATIVE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shared"), [("d16", False), ("d16-shared-adaln", True)])
@torch.inference_mode()
def test_published_d16_logits_are_as_recorded(name: str, shared: bool, published_vae: Autoencoder):
    tensors, metadata = recorded("published-sizes-cpu")
    d16 = PUBLISHED["d16"]
    pyramid = ScalePyramid(d16.pyramid.patch_nums)
    config = TransformerConfig(pyramid, 16, 1024, 16, d16.V, d16.C, d16.classes, shared_adaln=shared)
    network = Transformer(config, filled_weights(transformer.transformer_shapes(config)))
    labels_R, positions = torch.tensor(json.loads(metadata["labels"])), json.loads(metadata["positions"])
    assert labels_R.tolist() == [207, 1000]
    condition = network.condition(labels_R)
    x_RLD = torch.cat(prefix_inputs(network, published_vae, condition, tensors["vae/tokens"].long(), pyramid.S)[0], 1)
    mask_11LL = block_causal(pyramid, network.device, network.dtype)
    hidden_RLD = network.hidden(x_RLD, condition, GrowingCache(), mask_11LL)
    logits_RpV = network.logits(hidden_RLD[:, positions], condition)
    assert relative(logits_RpV, tensors[f"{name}/logits"]) <= RELATIVE
