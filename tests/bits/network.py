"""The network and the codec of the toy family: what a folder of `harness/models` would hold.

A text is T rows of A numbers. Keys and queries are rotated by row and column of the finest grid, so that no input says
where it sits; every position attends to its row's text, whose result may be rounded to bfloat16: that belongs to the
law, whatever dtype the rest is computed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models.network import Cache, Condition
from harness.models.var.sizes import random_weights
from harness.protocol.pyramid import ScalePyramid
from tests.toy import Weighted

N, V, A, LONGEST = 3, 2, 5, 2
LN_EPS = 1e-6


@dataclass(frozen=True)
class BitsConfig:
    """Sizes."""

    pyramid: ScalePyramid
    depth: int = 2
    D: int = 16
    H: int = 2
    classes: int = 3  # of a request without texts: none is taken
    rounds: bool = False  # what comes of a text is rounded to bfloat16
    V: int = V
    C: int = N
    family: str = "bits"
    reads: tuple[str, ...] = ("texts", "scale_guidance")

    @property
    def latent(self) -> tuple[int, int, int]:
        return N, *self.pyramid.sides[-1]

    @property
    def raw(self) -> int:
        return N


def shapes(config: BitsConfig) -> dict[str, tuple[int, ...]]:
    D = config.D
    whole = {
        "start": (1, D), "lvl_embed.weight": (config.pyramid.S, D), "word.weight": (D, N), "pool.weight": (D, A),
        "nothing": (LONGEST, A), "head.weight": (N * V, D), "head.bias": (N * V,),
    }  # fmt: skip
    for i in range(config.depth):
        block = {"qkv": (3 * D, D), "proj": (D, D), "text_q": (D, D), "text_kv": (2 * D, A), "fc1": (2 * D, D)}
        whole |= {f"blocks.{i}.{name}": shape for name, shape in (block | {"fc2": (D, 2 * D)}).items()}
    return whole


class BitsNetwork(Weighted):
    """Sizes and weights."""

    @property
    def start_1D(self) -> Tensor:
        return self.weights["start"]

    @cached_property
    def pos_LD(self) -> Tensor:
        return self.start_1D.new_zeros(self.pyramid.L, self.config.D)

    @property
    def lvl_SD(self) -> Tensor:
        return self.weights["lvl_embed.weight"]

    def embed(self, raw_BnC: Tensor) -> Tensor:
        return F.linear(raw_BnC.to(self.dtype), self.weights["word.weight"])

    def condition(self, texts: Sequence[Tensor]) -> Condition:
        """Compute what depends on the text of every guidance row."""
        rows = tuple(text_TA.to(self.device, self.dtype) for text_TA in texts)
        cond_RD = torch.stack([F.linear(text_TA, self.weights["pool.weight"]).mean(0) for text_TA in rows])
        none_R1D = cond_RD.new_zeros(len(rows), 1, 1)
        return Condition(cond_RD, (), (none_R1D, none_R1D), rows)

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert positions is not None
        (R, n, D), H, w = x_RnD.shape, self.config.H, self.weights
        for i in range(self.config.depth):
            name = f"blocks.{i}."
            qkv = F.linear(_norm(x_RnD), w[name + "qkv"]).view(R, n, 3, H, D // H).permute(2, 0, 3, 1, 4)
            q_RHnc, k_RHnc = (rotated(part, positions) for part in qkv[:2])
            k_RHKc, v_RHKc = cache.extend(i, k_RHnc, qkv[2])
            out_RHnc = F.scaled_dot_product_attention(2 * q_RHnc, k_RHKc, v_RHKc, mask_11nK)
            x_RnD = x_RnD + F.linear(out_RHnc.transpose(1, 2).flatten(2), w[name + "proj"])
            x_RnD = x_RnD + self._of_text(x_RnD, condition.texts, name)
            x_RnD = x_RnD + F.linear(F.gelu(F.linear(_norm(x_RnD), w[name + "fc1"])), w[name + "fc2"])
        return x_RnD

    def _of_text(self, x_RnD: Tensor, texts: Sequence[Tensor], name: str) -> Tensor:
        q_RnD = F.linear(_norm(x_RnD), self.weights[name + "text_q"])
        rows = []
        for q_nD, text_TA in zip(q_RnD, texts, strict=True):
            k_TD, v_TD = F.linear(text_TA, self.weights[name + "text_kv"]).chunk(2, -1)
            rows.append((q_nD @ k_TD.T / q_nD.shape[-1] ** 0.5).softmax(-1) @ v_TD)
        out_RnD = torch.stack(rows)
        return out_RnD.bfloat16().to(out_RnD.dtype) if self.config.rounds else out_RnD

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        dtype = torch.promote_types(h_RnD.dtype, torch.float32)
        weight, bias = (self.weights[f"head.{part}"].to(dtype) for part in ("weight", "bias"))
        return F.linear(_norm(h_RnD.to(dtype)), weight, bias).unflatten(-1, (N, V)).flatten(1, 2)


def rotated(x_RHnc: Tensor, where_n2: Tensor) -> Tensor:
    """Turn neighbours by an angle: the first half of all pairs by their row, the others by their column."""
    pairs = x_RHnc.shape[-1] // 2
    speed = torch.arange(1, pairs // 2 + 1, device=x_RHnc.device, dtype=x_RHnc.dtype) * 0.7
    angle_nk = (where_n2.to(x_RHnc.dtype)[:, :, None] * speed).flatten(1)
    a, b = x_RHnc.unflatten(-1, (pairs, 2)).unbind(-1)
    cos_nk, sin_nk = angle_nk.cos(), angle_nk.sin()
    return torch.stack((a * cos_nk - b * sin_nk, a * sin_nk + b * cos_nk), -1).flatten(-2)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=LN_EPS)


def bits_network(config: BitsConfig, seed: int) -> BitsNetwork:
    """Return a network of random weights, in which scales, texts and places leave marks of ordinary size."""
    weights = random_weights(shapes(config), seed)
    for name in ("start", "lvl_embed.weight", "pool.weight", "nothing"):
        weights[name] = weights[name] / weights[name].std()
    weights["head.weight"] = 1.5 * weights["head.weight"]
    return BitsNetwork(config, weights)


@dataclass(frozen=True)
class BitsCodebook:
    """Bits as ±size."""

    size: Tensor

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"size": self.size}

    def codes(self, idx_Bl: Tensor, h: int, w: int | None = None) -> Tensor:
        return ((2 * idx_Bl - 1) * self.size).view(-1, h, w or h, N).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class BitsCodecConfig:
    """Sizes."""

    V: int = V
    C: int = N


@dataclass(frozen=True)
class BitsCodec:
    """A codec without a decoder of its own: the three channels are colours."""

    weights: Mapping[str, Tensor]
    config: BitsCodecConfig = BitsCodecConfig()

    @property
    def quantizer(self) -> BitsCodebook:
        return BitsCodebook(self.weights["size"])

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["size"].dtype

    def check_for(self, pyramid: ScalePyramid) -> None:
        if pyramid.channels != N:
            raise InputError("channels", pyramid.channels, f"must be {N}", "pass bits")

    def to(self, device: torch.device | str, dtype: torch.dtype) -> BitsCodec:
        return replace(self, weights={name: w.to(device, dtype) for name, w in self.weights.items()})

    def decode(self, f_hat_BCPP: Tensor) -> Tensor:
        return F.interpolate(f_hat_BCPP.sigmoid(), scale_factor=4, mode="nearest")
