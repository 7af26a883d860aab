"""Distances between sets of features, and their intervals: jackknife over blocks, Student's quantiles, Wilson's share.

Promise: a distance is a function of the features alone, and torchmetrics computes every one of them; sets are cut into
the same blocks, image by image, so that what is paired in the drawing stays paired in the interval. Every interval
covers what it estimates with probability `LEVEL` about, whatever the distance; of a distance that is really 0 it is too
wide rather than too narrow (tests/unit/quality/test_simulated.py measures both).

Source: Fréchet distance, Heusel et al. 2017, with labels as in DeVries et al. 2019; kernel distance, Bińkowski et al.
2018; precision, Kynkäänniemi et al. 2019; coverage, Naeem et al. 2020; jackknife, Efron & Stein 1981 (its variance of
quadratic statistics is biased upwards); share, Wilson 1927.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from statistics import NormalDist, fmean
from typing import Any, Self

import torch
from torch import Tensor

from harness.errors import InputError, check_installed

LEVEL = 0.95
BLOCKS = 40  # fewer widen Student's quantile, more cost a distance each
LEAST_BLOCKS = 10  # below it the quantile's expansion fails
MOST_IMAGES = 10**9


@dataclass(frozen=True)
class Estimate:
    """A quantity, its interval, and what finite N adds to it."""

    value: float  # estimate, free of the bias of finite N to first order
    low: float  # lower end of the interval
    high: float  # upper end
    # as computed at this N, which published figures are; NaN where there is no other than `value`
    raw: float = math.nan

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def bias(self) -> float:
        """What finite N adds to the raw figure; NaN where it is not known."""
        return self.raw - self.value

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.half:.3f}"


@dataclass(frozen=True)
class Jackknifed:
    """A statistic of all images, and without each of some equal blocks of them."""

    whole: float
    without: list[float]

    def minus(self, other: Self) -> Self:
        """Return the paired difference."""
        without = [a - b for a, b in zip(self.without, other.without, strict=True)]
        return type(self)(self.whole - other.whole, without)

    @property
    def estimate(self) -> Estimate:
        g = len(self.without)
        check_blocks(g)
        pseudo = [g * self.whole - (g - 1) * value for value in self.without]
        value = fmean(pseudo)
        half = student(g - 1) * math.sqrt(sum((each - value) ** 2 for each in pseudo) / (g - 1) / g)
        return Estimate(value, value - half, value + half, self.whole)


def check_blocks(blocks: int) -> None:
    """Refuse fewer blocks than an interval needs. Raises `InputError`."""
    if blocks < LEAST_BLOCKS:
        raise InputError("blocks", blocks, f"must be at least {LEAST_BLOCKS}", f"pass --blocks {BLOCKS}")


def of_means(values: Sequence[float]) -> Estimate:
    """Return the estimate of a mean from those of equally large blocks, which finite N does not bias."""
    total, g = fmean(values), len(values)
    return Jackknifed(total, [(g * total - value) / (g - 1) for value in values]).estimate


def share(hits: int, n: int) -> Estimate:
    """Return a share of n independent images with Wilson's interval, which is honest near 0 and 1."""
    z, p = NormalDist().inv_cdf((1 + LEVEL) / 2), hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, middle - half, middle + half, p)


def student(freedom: int) -> float:
    """Return Student's two-sided quantile at `LEVEL`, to 0.1 % from 9 degrees on (Abramowitz & Stegun 26.7.5)."""
    z, n = NormalDist().inv_cdf((1 + LEVEL) / 2), freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def images_for(n: int, half: float, wanted: float) -> int:
    """Return the N at which `half`, which falls as 1/√N, is what is wanted; two digits, at most `MOST_IMAGES`."""
    if half <= wanted or wanted <= 0:
        return n if half <= wanted else MOST_IMAGES
    need = min(n * (half / wanted) ** 2, MOST_IMAGES)
    step = int(10 ** max(0, math.floor(math.log10(need)) - 1))
    return min(MOST_IMAGES, math.ceil(need / step) * step)


NEIGHBOURS = 5  # as Naeem et al. recommend
LAW_N = 50_000  # images of a stored mean and covariance, whose n only scales sums that are divided by it again


def check_torchmetrics() -> None:
    """Refuse to measure without torchmetrics. Raises `InputError`."""
    check_installed("torchmetrics", "quality", "quality", "distances", "needs torchmetrics")


@dataclass(frozen=True)
class Moments:
    """What a Fréchet distance takes of a set: count, sum_D and sum of products_DD, float64."""

    n: int
    sum_D: Tensor
    products_DD: Tensor

    @classmethod
    def of(cls, features_ND: Tensor) -> Self:
        x_ND = features_ND.double()
        return cls(len(x_ND), x_ND.sum(0), x_ND.T @ x_ND)

    @classmethod
    def of_law(cls, mean_D: Tensor, covariance_DD: Tensor) -> Self:
        """Return those of a set of which mean and covariance are known."""
        mean_D = mean_D.double()
        return cls(LAW_N, LAW_N * mean_D, (LAW_N - 1) * covariance_DD.double() + LAW_N * mean_D.outer(mean_D))

    def without(self, other: Self) -> Self:
        """Return those of the images that are not in `other`."""
        return type(self)(self.n - other.n, self.sum_D - other.sum_D, self.products_DD - other.products_DD)


@lru_cache(maxsize=4)
def _metric(D: int, device: torch.device) -> Any:
    """Return torchmetrics' metric; made once, since that takes longer than the distance of a few features."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415  # asked for where it is used

    as_they_are = torch.nn.Identity()  # the extractor of a metric that is given features
    as_they_are.num_features = D  # type: ignore[assignment]
    return FrechetInceptionDistance(feature=as_they_are).to(device)


def frechet(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance of two sets, by torchmetrics, in float64."""
    D, device = len(a.sum_D), a.sum_D.device
    metric = _metric(D, device)
    # forgets what it computed last; its states are set below
    metric.update(torch.zeros(1, D, dtype=torch.float64, device=device), real=True)
    for side, moments in (("real", a), ("fake", b)):
        setattr(metric, f"{side}_features_sum", moments.sum_D)
        setattr(metric, f"{side}_features_cov_sum", moments.products_DD)
        setattr(metric, f"{side}_features_num_samples", torch.tensor(moments.n, device=device))
    return float(metric.compute())


@dataclass(frozen=True)
class Blocks:
    """A set of features in blocks of independent images."""

    features_ND: Tensor  # in the order of the images
    edges: tuple[int, ...]  # of the blocks

    @classmethod
    def cut(cls, features_ND: Tensor, blocks: int) -> Self:
        """Return a set in so many blocks, as equal as they can be."""
        N = len(features_ND)
        return cls(features_ND, tuple(N * k // blocks for k in range(blocks + 1)))

    @cached_property
    def parts(self) -> list[Tensor]:
        return [self.features_ND[a:b] for a, b in pairwise(self.edges)]

    @cached_property
    def moments(self) -> tuple[Moments, list[Moments]]:
        """Moments of the whole, and without each block."""
        each = [Moments.of(part) for part in self.parts]
        sum_D, products_DD = (torch.stack([getattr(b, name) for b in each]).sum(0) for name in ("sum_D", "products_DD"))
        total = Moments(sum(block.n for block in each), sum_D, products_DD)
        return total, [total.without(block) for block in each]


def frechet_walk(actual: Blocks, expected: Blocks | Moments) -> Jackknifed:
    """Return the Fréchet distance of a set from another one, or from a law of which nothing is left out."""
    total, without = actual.moments
    if isinstance(expected, Moments):
        return Jackknifed(frechet(expected, total), [frechet(expected, moments) for moments in without])
    whole, others = expected.moments
    return Jackknifed(frechet(whole, total), [frechet(b, a) for a, b in zip(without, others, strict=True)])


def kernel(actual: Blocks, others: Sequence[Tensor]) -> Estimate:
    """Return the kernel distance: the mean of unbiased ones, block by block; a pair is cut to the smaller one."""
    from torchmetrics.image.kid import poly_mmd  # noqa: PLC0415

    distances = []
    for mine, theirs in zip(actual.parts, others, strict=True):
        m = min(len(mine), len(theirs))
        distances.append(float(poly_mmd(theirs[:m].double(), mine[:m].double())))
    return of_means(distances)


def slices(features_ND: Tensor, like: Blocks) -> list[Tensor]:
    """Return as many slices of a set as another one has blocks, each as large, from its begin again at its end."""
    N = len(features_ND)
    return [features_ND[torch.arange(a, b, device=features_ND.device) % N][:N] for a, b in pairwise(like.edges)]


@dataclass(frozen=True)
class Manifold:
    """Balls around real features that reach to their `NEIGHBOURS`-th neighbour among themselves."""

    features_RD: Tensor
    radii_R: Tensor

    @classmethod
    def of(cls, features_RD: Tensor) -> Self:
        """Return the balls of a set of real features; needs more than `NEIGHBOURS` of them."""
        x_RD = features_RD.double()
        rows = [torch.cdist(part, x_RD).kthvalue(NEIGHBOURS + 1, dim=1).values for part in x_RD.split(1024)]
        return cls(x_RD, torch.cat(rows))

    def of_blocks(self, actual: Blocks) -> tuple[Estimate, Estimate]:
        """Return precision, the share of images in any ball, and coverage, the share of balls that hold an image."""
        inside, held = 0, list[Tensor]()
        for part in actual.parts:
            within_NR = torch.cat([torch.cdist(x, self.features_RD) <= self.radii_R for x in part.double().split(1024)])
            inside += int(within_NR.any(1).sum())
            held.append(within_NR.sum(0))
        total_R = torch.stack(held).sum(0)
        covered = Jackknifed(_covered(total_R), [_covered(total_R - block_R) for block_R in held])
        return share(inside, len(actual.features_ND)), covered.estimate


def _covered(count_R: Tensor) -> float:
    return float((count_R > 0).double().mean())


def with_labels(features_ND: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """Return features joined by the label that was asked for, in standard deviations of labels in turn: (N, D + K)."""
    one_hot_NK = torch.nn.functional.one_hot(labels_N.long(), classes).to(features_ND)
    return torch.cat((features_ND, classes**0.5 * one_hot_NK), 1)
