"""One situation in which a law is tested, as plain numbers.

Promise: a `Case` is frozen and its repr is Python, so whatever broke in it can be replayed from the printed line; the
networks are a function of the case alone, and every position, scale and label is told apart by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from harness.differential import new_noise
from harness.errors import InputError
from harness.implementations import Settings
from harness.models import autoencoder, transformer
from harness.models.autoencoder import Autoencoder, AutoencoderConfig
from harness.models.pair import ModelPair
from harness.models.sizes import random_weights
from harness.models.transformer import Transformer, TransformerConfig
from harness.noise import SeededNoise
from harness.pyramid import ScalePyramid
from harness.request import NoiseOrder, Request

QUALITIES = ("identical", "close", "near", "far", "adversarial")
# Relative size of the change from the target's weights to the draft's; chosen so that full acceptance, partial
# acceptance and first-scale rejection all happen often (tests/meta/test_strategies.py counts them).
CHANGE = {"close": 0.03, "near": 0.15}
C = 4


@dataclass(frozen=True)
class Case:
    """Networks, request and settings, small enough to try hundreds of.

    Args:
        patch_nums: sides of the scales.
        V: codebook size.
        D: width of the target; two heads.
        depth: blocks of the target.
        shared_adaln: as in the largest published network.
        l2_norm: attention on unit vectors.
        weights: seed of all weights.
        draft: one of `QUALITIES`: from the target itself to one whose favourite is the target's last choice.
        labels: classes 0..3; 3 is the unconditional one.
        seed: of the request.
        cfg: guidance value.
        top_k: filter, 0 = off.
        top_p: filter, 0 = off.
        order: whose noise streams (`Request.order`).
        draft_len: scales proposed per round; cut to the number of scales.
        bonus: submit the scale behind the drafted ones too.
        dtype: of the networks.
    """

    patch_nums: tuple[int, ...] = (1, 2)
    V: int = 5
    D: int = 16
    depth: int = 1
    shared_adaln: bool = False
    l2_norm: bool = True
    weights: int = 0
    draft: str = "near"
    labels: tuple[int, ...] = (0,)
    seed: int = 0
    cfg: float = 1.5
    top_k: int = 0
    top_p: float = 0.0
    order: NoiseOrder = "image"
    draft_len: int = 2
    bonus: bool = False
    dtype: str = "float64"

    @property
    def pyramid(self) -> ScalePyramid:
        """Scales."""
        return ScalePyramid(self.patch_nums)

    @property
    def models(self) -> ModelPair:
        """The networks; built once per process."""
        return _models(
            replace(self, labels=(0,), seed=0, cfg=1.5, top_k=0, top_p=0.0, order="image", draft_len=1, bonus=False)
        )

    @property
    def request(self) -> Request:
        """What to sample."""
        return Request(self.labels, self.seed, self.cfg, self.top_k, self.top_p, order=self.order)

    @property
    def settings(self) -> Settings:
        """How to speculate."""
        return Settings(min(self.draft_len, len(self.patch_nums)), self.bonus)

    @property
    def B(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def windows(self) -> list[tuple[int, int]]:
        """Every window (first, last) of scales; on pyramids of more than 120 tokens those that end early."""
        pyramid = self.pyramid
        return [(a, b) for b in pyramid for a in range(b + 1) if pyramid.end(b) <= 120]

    def wide(self) -> Case:
        """Return the case with float64 networks: no two computations of one logit differ in more than 1e-10."""
        return replace(self, dtype="float64")

    def noise(self, request: Request | None = None) -> SeededNoise:
        """Return fresh numbers for one decode."""
        return new_noise(self.models, request or self.request)

    def generator(self) -> torch.Generator:
        """Return a generator of the law's own, so that a case always tries the same numbers."""
        return torch.Generator().manual_seed(self.seed * 7919 + self.weights)

    def random_tokens(self, B: int | None = None) -> torch.Tensor:
        """Return tokens_BL, uniform over the codebook."""
        return torch.randint(self.V, (B or self.B, self.pyramid.L), generator=self.generator())


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
    if quality not in CHANGE:
        raise InputError("draft", quality, f"must be one of {', '.join(QUALITIES)}", "pass near")
    other = transformer_weights(target.config, seed + 1).weights
    share = CHANGE[quality]
    mixed = {name: w * math.sqrt(1 - share * share) + share * other[name] for name, w in target.weights.items()}
    return replace(target, weights=mixed)


@lru_cache(maxsize=64)
def _models(case: Case) -> ModelPair:
    config = TransformerConfig(
        case.pyramid, case.depth, case.D, 2, case.V, C, 3, shared_adaln=case.shared_adaln, l2_norm=case.l2_norm
    )
    target = transformer_weights(config, 1000 * case.weights)
    layout = ("shared", "one", "per-scale")[case.weights % 3]
    vae_config = AutoencoderConfig(
        case.V, C, 32, (1,), res_blocks=0, phi={"shared": 4, "one": 1, "per-scale": case.pyramid.S}[layout],
        phi_layout=layout, has_encoder=False,
    )  # fmt: skip
    vae_weights = random_weights(autoencoder.parameter_shapes(vae_config), 1000 * case.weights + 2)
    vae_weights["quantize.embedding.weight"] *= 2
    pair = ModelPair(draft_of(target, case.draft, 1000 * case.weights), target, Autoencoder(vae_config, vae_weights))
    return pair.to("cpu", torch.float64 if case.dtype == "float64" else torch.float32)
