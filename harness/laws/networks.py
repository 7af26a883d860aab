"""Tiny networks of random weights, in which nothing is negligible.

Promise: a wrong position, scale, label or token moves every logit by far more than rounding; a draft is as near to its
target as its word says.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from harness.errors import InputError
from harness.models import autoencoder, transformer
from harness.models.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.network import TransformerConfig
from harness.models.pair import ModelPair
from harness.models.sizes import random_weights
from harness.models.transformer import Transformer

QUALITIES = ("near", "close", "far", "adversarial", "identical", "single")
# Relative size of the change from the target's weights to the draft's; chosen so that full acceptance, partial
# acceptance and first-scale rejection all happen often (tests/meta/test_strategies.py counts them).
CHANGE = {"close": 0.03, "near": 0.15}
C, CLASSES = 4, 3


def transformer_weights(config: TransformerConfig, seed: int) -> Transformer:
    """Return a network of random weights whose positions, scales and labels leave marks of ordinary size.

    The plain random weights of a size scale with fan-in, which would drown the embeddings: they are drawn at unit size
    here, so that a wrong position, level or label moves every logit by far more than rounding.
    """
    weights = random_weights(transformer.parameter_shapes(config), seed)
    for name in ("pos_1LC", "pos_start", "lvl_embed.weight", "class_emb.weight"):
        weights[name] = weights[name] / weights[name].std().clamp_min(1e-3)
    weights["head.weight"] = 1.5 * weights["head.weight"]
    return Transformer(config, weights)


def draft_of(target: Transformer, quality: str, seed: int) -> Transformer:
    """Return a draft of one of `QUALITIES`.

    Raises:
        InputError: another word.
    """
    if quality == "identical":
        return target
    if quality == "far":
        return transformer_weights(replace(target.config, depth=1), seed + 1)
    if quality == "adversarial":
        negated = {name: -w if name.startswith("head.") else w for name, w in target.weights.items()}
        return replace(target, weights=negated)
    if quality == "single":
        return replace(target, weights=_few_positions_moved(target, seed))
    if quality not in CHANGE:
        raise InputError("draft", quality, f"must be one of {', '.join(QUALITIES)}", "pass near")
    other = transformer_weights(target.config, seed + 1).weights
    share = CHANGE[quality]
    mixed = {name: w * math.sqrt(1 - share * share) + share * other[name] for name, w in target.weights.items()}
    return replace(target, weights=mixed)


def _few_positions_moved(target: Transformer, seed: int) -> dict[str, Tensor]:
    """Move at most eight positions of one of the last two scales: a token or two is wrong there, hardly another."""
    pyramid = target.config.pyramid
    si = max(0, pyramid.S - 1 - seed // 1000 % 2)
    n = pyramid.tokens(si)
    # of more than 512 one or two: a share of wrong tokens so small is none in bfloat16
    count = 2 if n > 512 else min(8, max(1, n // 32))
    at = [pyramid.begin(si) + (seed // 1000 * 7 + n // count * k) % n for k in range(count)]
    pos_1LC = target.weights["pos_1LC"].clone()
    pos_1LC[:, at] *= -4
    return {**target.weights, "pos_1LC": pos_1LC}


def random_models(config: TransformerConfig, seed: int, quality: str) -> ModelPair:
    """Return a target, a draft of one of `QUALITIES`, and a quantiser whose φ layout goes with the seed."""
    target = transformer_weights(config, 1000 * seed)
    layout, phi = (("shared", 4), ("one", 1), ("per-scale", config.pyramid.S))[seed % 3]
    vae_config = AutoencoderConfig(
        config.V, config.C, 32, (1,), res_blocks=0, phi=phi, phi_layout=layout, has_encoder=False
    )
    vae_weights = random_weights(autoencoder.parameter_shapes(vae_config), 1000 * seed + 2)
    vae_weights["quantize.embedding.weight"] *= 2
    return ModelPair(draft_of(target, quality, 1000 * seed), target, Autoencoder(vae_config, vae_weights))
