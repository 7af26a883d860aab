"""Stand-in features, quick networks and sets of features with a known distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.protocol.pyramid import ScalePyramid
from harness.quality._distances import Moments
from harness.quality._draw import Source
from harness.quality._features import Real
from harness.quality._gather import ImageSet
from harness.quality._study import Means
from tests.toy import toy_pair

MODELS = toy_pair(ScalePyramid((1, 2, 3)), 6, seed=1, apart=0.2)
NONE = torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Corners:
    """Four pixels of an image, and which of two classes its mean says."""

    name: str = "corners"
    unit: str = "grey levels"
    D: int = 4
    classes: int = 2

    def to(self, device: torch.device) -> Corners:
        return self

    def __call__(self, image_B3hw: Tensor) -> tuple[Tensor, Tensor]:
        x_B4 = image_B3hw[:, 0, :2, :2].flatten(1)
        return x_B4, (x_B4.mean(1) > 0.5).long()


def corners(classes: int = 2) -> Means:
    real = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    return Means(Corners(classes=classes), Real.of("random corners", real, torch.arange(200) % classes, classes))


def gaussian(n: int, shift: float, generator: torch.Generator, D: int = 4) -> Tensor:
    """Return features of a law that lies `shift` from the standard one: their Fréchet distance is shift²."""
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    x[:, 0] += shift
    return x


def image_set(name: str, features_ND: Tensor) -> ImageSet:
    labels = torch.zeros(len(features_ND), dtype=torch.int64)
    return ImageSet(Source(name), "A", labels, features_ND, NONE, NONE, torch.zeros(0), 0.0)


def standard(D: int = 4) -> Real:
    return Real("the standard law", Moments.of_law(torch.zeros(D), torch.eye(D)))


def shift_of(loss: float, base: float) -> float:
    """Return the shift whose distance from the standard law is `loss` beyond that of `base`."""
    return math.sqrt(base**2 + loss)
