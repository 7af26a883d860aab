"""Table-driven networks with known laws, for laws that run in milliseconds through the production decoder.

Promise: a `ToyTransformer` is a `Network`, whose logits at a position are exactly

    table[label, position] + mean over the visible positions of their inputs · mix

so a wrong position, label, level, mask, cache or raw input changes them. With `mix` zero the law of a position is the
softmax of its table row whatever came before. float64 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from harness.models._pair import ModelPair
from harness.models.network import Cache, Condition, TransformerConfig
from harness.models.var.autoencoder import Autoencoder, AutoencoderConfig, autoencoder_shapes
from harness.models.var.sizes import random_weights
from harness.protocol.pyramid import ScalePyramid

CHANNELS = 2
NEVER = -1e4  # a logit whose probability is exactly 0 in float64, and finite, so that guidance does not make NaN of it


@dataclass(frozen=True)
class Weighted:
    """What every network of named weights has: where they live, their type, and copies."""

    config: Any  # sizes
    weights: Mapping[str, Tensor] = field(repr=False)  # all of one dtype

    @property
    def pyramid(self) -> ScalePyramid:
        """Scales."""
        pyramid: ScalePyramid = self.config.pyramid
        return pyramid

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(iter(self.weights.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(iter(self.weights.values())).dtype

    def bytes(self) -> int:
        """Return how much memory the weights fill."""
        return sum(weight.numel() * weight.element_size() for weight in self.weights.values())

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return a copy on `device` in `dtype`."""
        return replace(self, weights={name: w.to(device, dtype) for name, w in self.weights.items()})

    def converted(self, dtype: torch.dtype) -> Self:
        """Return a copy in `dtype`."""
        return self.to(self.device, dtype)


@dataclass(frozen=True)
class ToyTransformer(Weighted):
    """A transformer of one uniform attention layer over one-hot positions, levels and raw inputs.

    D = C + L + S, one layer, one head; weights: "table" (classes+1, L, V), "mix" (D, V), the one-hot "pos" and "lvl".
    """

    @property
    def start_1D(self) -> Tensor:
        """Added at scale 0: nothing."""
        return torch.zeros(1, self.config.D, device=self.device, dtype=self.dtype)

    @property
    def pos_LD(self) -> Tensor:
        """One-hot position."""
        return self.weights["pos"]

    @property
    def lvl_SD(self) -> Tensor:
        """One-hot scale."""
        return self.weights["lvl"]

    def embed(self, raw_BnC: Tensor) -> Tensor:
        """Return the raw input in the first C of D channels."""
        n_zero = self.config.D - self.config.C
        return torch.nn.functional.pad(raw_BnC.to(self.dtype), (0, n_zero))

    def condition(self, labels_R: Tensor) -> Condition:
        """Return the label's table (R, L, V) where the head's vectors are; the class embedding is zero."""
        table_RLV = self.weights["table"][labels_R]
        zero_RD = torch.zeros(len(labels_R), self.config.D, device=self.device, dtype=self.dtype)
        return Condition(zero_RD, (), (table_RLV, table_RLV))

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return h (R,n,2D): the input, and the mean input of all visible positions."""
        k_R1KD, v_R1KD = cache.extend(0, x_RnD[:, None], x_RnD[:, None])
        weights_nK = x_RnD.new_zeros(x_RnD.shape[1], k_R1KD.shape[2]) if mask_11nK is None else mask_11nK[0, 0]
        return torch.cat((x_RnD, weights_nK.softmax(-1) @ v_R1KD[:, 0]), -1)

    def logits(self, h_RnX: Tensor, condition: Condition) -> Tensor:
        """Return logits_RnV: the table's row of the position that the input carries, plus the mixed mean."""
        C, L, D = self.config.C, self.pyramid.L, self.config.D
        return h_RnX[..., C : C + L] @ condition.head[0] + h_RnX[..., D:] @ self.weights["mix"]


def toy_transformer(pyramid: ScalePyramid, table: Tensor, mix: Tensor | float = 0.0, seed: int = 0) -> ToyTransformer:
    """Return a network with these tables.

    Args:
        pyramid: any.
        table: logits (classes+1, L, V), float64; the last class is the unconditional one. `NEVER` rules a token out.
        mix: how the visible inputs move the logits: (D, V), or the size of random numbers of `seed`.
        seed: of the random mix.
    """
    classes, L, V = table.shape[0] - 1, pyramid.L, table.shape[2]
    D = CHANNELS + L + pyramid.S
    if not isinstance(mix, Tensor):
        mix = mix * torch.randn(D, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    eye = torch.eye(D, dtype=torch.float64)
    weights = {"table": table, "mix": mix, "pos": eye[CHANNELS : CHANNELS + L], "lvl": eye[CHANNELS + L :]}
    return ToyTransformer(TransformerConfig(pyramid, 1, D, 1, V, CHANNELS, classes), weights)


def toy_autoencoder(V: int, seed: int = 0) -> Autoencoder:
    """Return a tiny VQ-VAE of random weights: a real quantiser, and pixels of no meaning."""
    config = AutoencoderConfig(V, CHANNELS, ch=32, multipliers=(1,), res_blocks=1, phi=1, phi_layout="one")
    config = replace(config, has_encoder=False)
    return Autoencoder(config, random_weights(autoencoder_shapes(config), seed)).to("cpu", torch.float64)


def as_pair(draft: ToyTransformer, target: ToyTransformer, name: str = "toy") -> ModelPair:
    """Return two toy networks and a tiny VQ-VAE as a pair."""
    return ModelPair(draft, target, toy_autoencoder(target.config.V), name)


def toy_pair(pyramid: ScalePyramid, V: int, seed: int, apart: float = 1.0, classes: int = 2) -> ModelPair:
    """Return a random pair whose laws depend on label, position and everything that came before.

    Args:
        pyramid: any.
        V: codebook size.
        seed: of all tables.
        apart: how far the draft's table is from the target's; 0 makes the two networks equal.
        classes: number of classes.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (classes + 1, pyramid.L, V)
    target = torch.randn(shape, generator=generator, dtype=torch.float64)
    draft = target + apart * torch.randn(shape, generator=generator, dtype=torch.float64)
    return as_pair(toy_transformer(pyramid, draft, 1.0, seed), toy_transformer(pyramid, target, 1.0, seed))
