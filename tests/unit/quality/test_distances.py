"""Distances of sets with known ones, and intervals that cover what they estimate."""

from __future__ import annotations

import importlib.util

# torchmetrics takes eigenvalues of a product that is not symmetric, numpy here a symmetric root: both in float64, and
# rounding of the root of an eigenvalue near 0 is 1e-8
import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.quality._distances import (
    MOST_IMAGES,
    Blocks,
    Estimate,
    Jackknifed,
    Manifold,
    Moments,
    check_torchmetrics,
    frechet,
    frechet_walk,
    images_for,
    kernel,
    of_means,
    share,
    slices,
    student,
    with_labels,
)
from tests.unit.quality.means import gaussian

ROUNDING = 1e-7


def numpy_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians as its definition reads, by symmetric roots."""

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    first, second = np.cov(a.T), np.cov(b.T)
    half = root(first)
    cross = root(half @ second @ half)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * np.trace(cross))


def numpy_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD of the cubic kernel, pair by pair."""

    def k(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    m = len(a)
    inside = sum((k(x, x).sum() - np.trace(k(x, x))) / (m * (m - 1)) for x in (a, b))
    return float(inside - 2 * k(a, b).mean())


def sets(n: int = 300, D: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return gaussian(n, 0.4, generator, D) @ mix, gaussian(n, 0, generator, D) @ (mix + 0.2)


def test_the_distances_are_those_of_an_independent_computation():
    a, b = sets()
    expected = numpy_frechet(a.numpy(), b.numpy())
    assert expected > 0.1
    assert abs(frechet(Moments.of(a), Moments.of(b)) - expected) < ROUNDING * expected
    blocks = Blocks.cut(a, 10)
    parts = [numpy_kernel(x.numpy(), y.numpy()) for x, y in zip(blocks.parts, slices(b, blocks), strict=True)]
    assert kernel(blocks, slices(b, blocks)).value == pytest.approx(np.mean(parts), rel=1e-9)


def test_the_tolerance_sees_another_divisor_of_the_covariance():
    a, b = (x.numpy() for x in sets())
    other = numpy_frechet(a, b) - numpy_frechet(a * np.sqrt(299 / 300), b * np.sqrt(299 / 300))
    assert abs(other) > 100 * ROUNDING * numpy_frechet(a, b)


def test_singular_covariances_are_no_trouble():
    a, b = (with_labels(x, torch.arange(300) % 3, 3) for x in sets())
    expected = numpy_frechet(a.numpy(), b.numpy())
    assert frechet(Moments.of(a), Moments.of(b)) == pytest.approx(expected, abs=1e-6)


def test_a_law_is_as_good_as_the_set_that_it_was_measured_on():
    a, b = sets()
    law = Moments.of_law(b.mean(0), torch.cov(b.T))
    assert frechet(law, Moments.of(a)) == pytest.approx(frechet(Moments.of(b), Moments.of(a)), rel=1e-9)


def test_leaving_a_block_out_is_measuring_the_others():
    a, b = sets()
    walk = frechet_walk(Blocks.cut(a, 10), Blocks.cut(b, 10))
    assert walk.whole == pytest.approx(numpy_frechet(a.numpy(), b.numpy()), rel=ROUNDING)
    assert walk.without[3] == pytest.approx(
        numpy_frechet(np.delete(a.numpy(), np.s_[90:120], 0), np.delete(b.numpy(), np.s_[90:120], 0)), rel=ROUNDING
    )


def test_shuffled_labels_are_far_only_where_labels_count():
    x = torch.eye(3, dtype=torch.float64).repeat(40, 1) + 0.1 * sets(120, 3)[0]
    labels = torch.arange(120) % 3
    right, wrong = (with_labels(x, of, 3) for of in (labels, labels.roll(1)))
    assert frechet(Moments.of(right), Moments.of(wrong)) > 1
    assert right.shape == (120, 6)


def test_precision_and_coverage_by_hand():
    real = torch.cat((torch.arange(6.0), torch.arange(100.0, 106.0)))[:, None]  # two clusters, radii 3 to 5
    near = Blocks.cut(torch.tensor([0.5] * 15 + [50.0] * 5)[:, None], 10)
    precision, coverage = Manifold.of(real).of_blocks(near)
    assert precision.value == 0.75
    assert coverage.raw == 0.5
    assert coverage.low <= 0.5 <= coverage.high


def test_without_torchmetrics_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs torchmetrics.*pip install "\.\[quality\]" in the clone'):
        check_torchmetrics()


def test_the_jackknife_of_a_mean_is_the_classic_interval():
    values = [float(k * k % 17) for k in range(12)]
    made = of_means(values)
    assert made.value == pytest.approx(statistics.fmean(values))
    assert made.half == pytest.approx(2.201 * statistics.stdev(values) / math.sqrt(12), rel=1e-3)
    assert made.bias == pytest.approx(0, abs=1e-12)


def test_a_bias_of_one_over_n_is_taken_out():
    g, n = 20, 1000
    made = Jackknifed(3.0 + 50 / n, [3.0 + 50 / (n - n / g)] * g).estimate
    assert made.value == pytest.approx(3.0)
    assert made.bias == pytest.approx(0.05)
    assert made.half == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(9, 2.2622), (10, 2.2281), (19, 2.0930), (39, 2.0227), (10**6, 1.96)]
)
def test_student(freedom: int, quantile: float):
    assert student(freedom) == pytest.approx(quantile, rel=1e-3)


def test_a_share_of_all_or_none_has_an_interval_still():
    assert share(100, 100).low == pytest.approx(0.963, abs=1e-3)
    assert share(0, 100).high == pytest.approx(0.037, abs=1e-3)
    assert (share(50, 100).low, share(50, 100).high) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_how_many_images_an_interval_needs():
    assert images_for(1000, 0.2, 0.1) == 4000
    assert images_for(1000, 0.2, 0.3) == 1000
    assert images_for(1000, 0.21, 0.1) == 4500
    assert images_for(1000, 0.2, 0.0) == MOST_IMAGES
    assert images_for(50, 0.2, 0.19) == 56


def test_few_blocks_are_refused():
    with pytest.raises(InputError, match=r"^blocks=9: must be at least 10; pass --blocks 40"):
        _ = Jackknifed(1.0, [1.0] * 9).estimate


def test_an_estimate_reads_as_a_figure():
    assert str(Estimate(0.1234, 0.1, 0.2)) == "0.123 ± 0.050"
