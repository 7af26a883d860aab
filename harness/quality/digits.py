"""The digits classifier: what an image of a digit is measured by.

Promise: a pure function of frozen weights; features in standard deviations of real digits, so that the real digits have
mean 0 and covariance 1 in every direction. `scripts/classifier.py` is the recipe of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from harness.errors import InputError

SIDE, CLASSES, D = 32, 10, 32  # pixels, digits, features
WIDTHS = (1, 16, 32, 64)  # channels in front of and behind every convolution
DATA = Path(str(files("harness.quality") / "data"))


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Return every weight's name and shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for k, (into, out) in enumerate(pairwise(WIDTHS)):
        shapes |= {f"conv.{k}.weight": (out, into, 3, 3), f"conv.{k}.bias": (out,)}
    flat = WIDTHS[-1] * (SIDE >> 3) ** 2
    shapes |= {"embed.weight": (D, flat), "embed.bias": (D,)}
    return shapes | {"head.weight": (CLASSES, D), "head.bias": (CLASSES,)}


def trunk(weights: Mapping[str, Tensor], image_B1hw: Tensor) -> Tensor:
    """Return what the convolutions make of images in [0, 1], flat."""
    x = image_B1hw
    for k in range(len(WIDTHS) - 1):
        x = F.max_pool2d(F.relu(F.conv2d(x, weights[f"conv.{k}.weight"], weights[f"conv.{k}.bias"], padding=1)), 2)
    return x.flatten(1)  # (B, C, h, w) -> (B, C·h·w)


def embed(weights: Mapping[str, Tensor], flat_BF: Tensor) -> Tensor:
    """Return embedding_BD, in front of its ReLU."""
    return F.linear(flat_BF, weights["embed.weight"], weights["embed.bias"])


def head(weights: Mapping[str, Tensor], embedding_BD: Tensor) -> Tensor:
    """Return the logits_BK of the ten digits."""
    return F.linear(F.relu(embedding_BD), weights["head.weight"], weights["head.bias"])


@dataclass(frozen=True)
class DigitFeatures:
    """Features of digits.

    Args:
        weights: of `parameter_shapes`, with `mean_D` and `whiten_DD`, which give the features their unit.
    """

    weights: Mapping[str, Tensor] = field(repr=False)
    name: str = "digits classifier"
    unit: str = "squared standard deviations of real digits"
    D: int = D
    classes: int = CLASSES

    def to(self, device: torch.device) -> DigitFeatures:
        """Return a copy on a device."""
        return replace(self, weights={name: weight.to(device) for name, weight in self.weights.items()})

    @torch.inference_mode()
    def __call__(self, image_B3hw: Tensor) -> tuple[Tensor, Tensor]:
        """Return features_BD and the digit of each, (B,), of images in [0, 1].

        Raises:
            InputError: images of another size.
        """
        if tuple(image_B3hw.shape[1:]) != (3, SIDE, SIDE):
            rule = f"must be (3, {SIDE}, {SIDE}) for the {self.name}"
            raise InputError("image", tuple(image_B3hw.shape[1:]), rule, "pass --features FILE for other images")
        grey_B1hw = image_B3hw.float().mean(1, keepdim=True)
        embedding_BD = embed(self.weights, trunk(self.weights, grey_B1hw))
        features_BD = (embedding_BD - self.weights["mean_D"]) @ self.weights["whiten_DD"]
        return features_BD, head(self.weights, embedding_BD).argmax(1)


def padded(digits_B28: Tensor) -> Tensor:
    """Return MNIST's digits (B,28,28) in [0, 1] as the pair draws them: (B,3,32,32), padded with black."""
    return F.pad(digits_B28, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1)


def load_features() -> DigitFeatures:
    """Load the features that ship with the package."""
    return DigitFeatures(load_file(DATA / "classifier.safetensors"))


def load_real() -> tuple[Tensor, Tensor]:
    """Load features_ND and labels_N of the real digits that ship with the package: none was trained on."""
    tensors = load_file(DATA / "real.safetensors")
    return tensors["features_ND"].float(), tensors["labels_N"].long()
