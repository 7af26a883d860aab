"""Checkpoints of Infinity: published names in, networks out, and one line for what does not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import InputError
from harness.models import ModelPair, load_digits, load_pair
from harness.models.infinity.autoencoder import binary_config, infinity_autoencoder_shapes
from harness.models.infinity.checkpoint import Told, load_infinity, transformer_from
from harness.models.infinity.transformer import InfinityConfig, infinity_shapes
from harness.models.var.sizes import filled_weights
from harness.protocol.pyramid import ScalePyramid

SIDES = ((1, 1), (2, 2), (3, 4))
CONFIG = InfinityConfig(ScalePyramid(sides=SIDES, channels=4), 4, 32, 2, 4, 128, 6, 256, 1, chunks=2)
TOLD = Told(SIDES)
VAE = binary_config(4, 32, (1, 2), 1)


def outer(name: str) -> str:
    """Return a name of the autoencoder as a module has it."""
    stem, _, part = name.rpartition(".")
    return f"{stem}.{'norm' if 'norm' in stem.rpartition('.')[2] else 'conv'}.{part}"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    weights = filled_weights(infinity_shapes(CONFIG))
    zeros = {name.replace("v_bias", "zero_k_bias"): torch.zeros(32) for name in weights if name.endswith(".v_bias")}
    vae = {outer(name): tensor for name, tensor in filled_weights(infinity_autoencoder_shapes(VAE)).items()}
    torch.save({"vae": vae | {"quantizer.mask": torch.ones(1)}}, tmp_path / "vae.pth")
    save_file(weights | zeros, tmp_path / "target.safetensors")
    save_file(weights, tmp_path / "draft.safetensors")
    return {name: next(tmp_path.glob(f"{name}.*")) for name in ("draft", "target", "vae")}


def loaded(files: dict[str, Path], told: Told = TOLD) -> ModelPair:
    return load_infinity(files["draft"], files["target"], files["vae"], told)


def test_published_names_are_read_and_sizes_follow_from_shapes(files: dict[str, Path]):
    pair = loaded(files)
    assert pair.target.config == CONFIG
    assert pair.target.weights.keys() == infinity_shapes(CONFIG).keys()
    assert pair.vae.config == VAE
    assert "decoder.up.1.upsample.conv.weight" in pair.vae.weights
    assert torch.equal(pair.target.weights["cfg_uncond"], filled_weights(infinity_shapes(CONFIG))["cfg_uncond"])


def test_an_autoencoder_whose_names_lack_the_inner_part_is_the_same(files: dict[str, Path], tmp_path: Path):
    save_file(filled_weights(infinity_autoencoder_shapes(VAE)), tmp_path / "plain.safetensors")
    plain, f_hat = loaded(files | {"vae": tmp_path / "plain.safetensors"}), torch.ones(1, 4, 3, 4)
    assert torch.equal(plain.vae.decode(f_hat), loaded(files).vae.decode(f_hat))


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, shared_adaln=False, ca_gamma=True, norm0_ve=True, two_layer_head=True),
        replace(CONFIG, pyramid=ScalePyramid(sides=SIDES, channels=16), chunks=1),
        replace(CONFIG, l2_norm=False, rule=1, levels_once=False, rounds=False, full=(9, 12)),
    ],
)
def test_every_option_that_shapes_tell_is_found(config: InfinityConfig):
    told = Told(SIDES, config.full, config.C, 0 if config.l2_norm else 2, config.rule, config.levels_once)
    built = transformer_from(filled_weights(infinity_shapes(config)), "target=x", replace(told, rounds=config.rounds))
    assert built.config == config


def bent(weights: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        return {name: tensor for name, tensor in weights.items() if name != "block_chunks.1.module.1.ca.proj.bias"}
    if how == "unknown":
        return weights | {"block_chunks.0.module.0.extra": torch.zeros(1)}
    if how == "shape":
        return weights | {"text_norm.weight": torch.zeros(5)}
    if how == "zeros":
        return weights | {"block_chunks.0.module.0.sa.zero_k_bias": torch.ones(32)}
    return {name: tensor for name, tensor in weights.items() if not name.startswith("block_chunks")}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "missing block_chunks.1.module.1.ca.proj.bias"),
        ("unknown", "unknown block_chunks.0.module.0.extra"),
        ("shape", "shape of text_norm.weight is (5,), not (128,)"),
        ("zeros", "zero_k_bias does not hold its derived value"),
        ("blocks", "has no block_chunks.0.module.0.ffn.fc1.weight of 2 axes"),
    ],
)
def test_what_does_not_fit_is_named(how: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        transformer_from(bent(filled_weights(infinity_shapes(CONFIG)), how), "target=x", TOLD)


def test_heads_are_told_where_no_tensor_tells_them():
    weights = filled_weights(infinity_shapes(replace(CONFIG, l2_norm=False)))
    with pytest.raises(InputError, match="has 0 heads, where 0 are told; tell the number of heads"):
        transformer_from(weights, "target=x", TOLD)
    with pytest.raises(InputError, match="has 2 heads, where 4 are told"):
        transformer_from(filled_weights(infinity_shapes(CONFIG)), "target=x", replace(TOLD, heads=4))


def test_a_checkpoint_of_the_other_family_is_named(files: dict[str, Path], tmp_path: Path):
    digits = Path(load_digits.__globals__["__file__"]).parent / "digits"
    with pytest.raises(InputError, match="holds a VAR transformer, no Infinity transformer"):
        loaded(files | {"target": digits / "target.safetensors"})
    with pytest.raises(InputError, match="is a VQ-VAE of VAR, whose codes are no bits"):
        loaded(files | {"vae": digits / "vae.safetensors"})
    with pytest.raises(InputError, match="is an Infinity transformer, not one of VAR; pass networks of one family"):
        load_pair(digits / "draft.safetensors", files["target"], digits / "vae.safetensors")
    with pytest.raises(InputError, match="holds no VQ-VAE"):
        load_pair(digits / "draft.safetensors", digits / "target.safetensors", files["vae"])


def test_families_are_not_mixed(files: dict[str, Path]):
    pair, digits = loaded(files), load_digits()
    with pytest.raises(InputError, match="draft family=var: must equal the target's infinity"):
        ModelPair(digits.draft, pair.target, pair.vae)
    with pytest.raises(InputError, match="vae V=2: must equal the target's 512"):
        ModelPair(digits.draft, digits.target, pair.vae)
    with pytest.raises(InputError, match="is a mode of networks of VAR alone"):
        pair.in_mode("cpu", "autocast-bfloat16")
