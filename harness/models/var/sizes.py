"""The published sizes by name, and weights for them: random, or filled by the recordings' formula.

Promise: `PUBLISHED` has exactly the parameter counts of the spec page (§2); weights are a function of the arguments.
"""

import math

import numpy as np
import torch
from torch import Tensor

from harness.models.network import TransformerConfig
from harness.models.var.autoencoder import AutoencoderConfig, Shapes
from harness.protocol.pyramid import PATCH_NUMS_256, PATCH_NUMS_512, ScalePyramid

CLASSES, V, C = 1000, 4096, 32


def _published(depth: int, patch_nums: tuple[int, ...] = PATCH_NUMS_256, shared: bool = False) -> TransformerConfig:
    D, H = 64 * depth, depth
    return TransformerConfig(ScalePyramid(patch_nums), depth, D, H, V, C, CLASSES, shared_adaln=shared)


PUBLISHED = {f"d{depth}": _published(depth) for depth in (16, 20, 24, 30)}
PUBLISHED["d36"] = _published(36, PATCH_NUMS_512, shared=True)
PUBLISHED_VAE = AutoencoderConfig(V=V, C=C, ch=160, multipliers=(1, 1, 2, 2, 4))


def count_scalars(shapes: Shapes) -> int:
    """Return the number of scalars in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())


def random_weights(shapes: Shapes, seed: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return float32 weights ~ N(0, 1/fan): activations of ordinary size, so that speed and rounding are realistic.

    Embeddings take their width for the fan, so that every position, scale and label tells; the attention's temperature
    is near 4, as at the start of a training. Draws: from a generator of its own, another one on CUDA than on a CPU.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        fan = shape[-1] if name.startswith(("pos_", "lvl_embed", "class_emb")) else _fan(shape)
        middle = math.log(4) if name.endswith("scale_mul_1H11") else 0.0
        weights[name] = torch.randn(shape, device=device, generator=generator) / math.sqrt(fan) + middle
    return weights


def filled_weights(shapes: Shapes) -> dict[str, Tensor]:
    """Return the weights that the recorded networks without files were filled with.

    Source: the recordings' README, "The fill": a 32-bit hash of (index, rank of the name), scaled by √(3/fan).
    """
    return {name: _fill(j, shapes[name]) for j, name in enumerate(sorted(shapes))}


def fill_bits(j: int, size: int) -> np.ndarray:
    """Return the formula's 32-bit hash of elements 0..size-1 of the j-th tensor."""
    x = np.arange(size, dtype=np.uint32) + np.uint32(j * 0x9E3779B9 & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


def _fill(j: int, shape: tuple[int, ...]) -> Tensor:
    value = (fill_bits(j, math.prod(shape)) / 2.0**31 - 1) * math.sqrt(3 / _fan(shape))
    return torch.from_numpy(value.astype(np.float32)).view(shape)


def _fan(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:]) if len(shape) > 1 else 4
