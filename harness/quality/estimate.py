"""Estimates with intervals: the delete-one-block jackknife, Student's quantiles, Wilson's interval of a share.

Promise: every interval covers what it estimates with probability `LEVEL` about, whatever the distance; of a distance
that is really 0 it is too wide rather than too narrow (tests/unit/quality/test_simulated.py measures both).

Source: Efron & Stein 1981 (jackknife variance of quadratic statistics is biased upwards); Wilson 1927.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from harness.errors import InputError

LEVEL = 0.95
BLOCKS = 40  # fewer widen Student's quantile, more cost a distance each
LEAST_BLOCKS = 10  # below it the quantile's expansion fails
MOST_IMAGES = 10**9


@dataclass(frozen=True)
class Estimate:
    """A quantity, its interval, and what finite N adds to it.

    Args:
        value: estimate, free of the bias of finite N to first order.
        low: lower end of the interval.
        high: upper end.
        raw: as computed at this N, which published figures are; NaN where there is no other than `value`.
    """

    value: float
    low: float
    high: float
    raw: float = math.nan

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def bias(self) -> float:
        """What finite N adds to the raw figure; NaN where it is not known."""
        return self.raw - self.value

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.half:.3f}"


def jackknife(whole: float, without: Sequence[float]) -> Estimate:
    """Return the estimate of a statistic from its values without each block.

    Args:
        whole: of all images.
        without: of all but those of block j, for every block; equally large blocks of independent images.

    Raises:
        InputError: fewer than `LEAST_BLOCKS` blocks.
    """
    g = len(without)
    check_blocks(g)
    pseudo = [g * whole - (g - 1) * value for value in without]
    value = fmean(pseudo)
    half = student(g - 1) * math.sqrt(sum((each - value) ** 2 for each in pseudo) / (g - 1) / g)
    return Estimate(value, value - half, value + half, whole)


def check_blocks(blocks: int) -> None:
    """Refuse fewer blocks than an interval needs. Raises `InputError`."""
    if blocks < LEAST_BLOCKS:
        raise InputError("blocks", blocks, f"must be at least {LEAST_BLOCKS}", f"pass --blocks {BLOCKS}")


def of_means(values: Sequence[float]) -> Estimate:
    """Return the estimate of a mean from those of equally large blocks, which finite N does not bias."""
    total = fmean(values)
    g = len(values)
    return jackknife(total, [(g * total - value) / (g - 1) for value in values])


def share(hits: int, n: int) -> Estimate:
    """Return a share of n independent images with Wilson's interval, which is honest near 0 and 1."""
    z, p = NormalDist().inv_cdf((1 + LEVEL) / 2), hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, middle - half, middle + half, p)


def student(freedom: int) -> float:
    """Return the two-sided quantile of Student's law at `LEVEL`, by its expansion: to 0.1 % from 9 degrees on.

    Source: Abramowitz & Stegun 26.7.5.
    """
    z, n = NormalDist().inv_cdf((1 + LEVEL) / 2), freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def images_for(n: int, half: float, wanted: float) -> int:
    """Return the N at which an interval narrows to what is wanted, to two digits; at most `MOST_IMAGES`.

    Args:
        n: images that were drawn.
        half: of the interval at `n`, to either side; falls as 1/√N.
        wanted: what it shall be.
    """
    if half <= wanted or wanted <= 0:
        return n if half <= wanted else MOST_IMAGES
    need = min(n * (half / wanted) ** 2, MOST_IMAGES)
    step = int(10 ** max(0, math.floor(math.log10(need)) - 1))
    return min(MOST_IMAGES, math.ceil(need / step) * step)
