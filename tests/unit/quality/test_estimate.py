"""Intervals: classic formulas by hand, tables of Student's quantile, shares near 0 and 1."""

from __future__ import annotations

import math
import statistics

import pytest

from harness.errors import InputError
from harness.quality.distances import MOST_IMAGES, Estimate, images_for, jackknife, of_means, share, student


def test_the_jackknife_of_a_mean_is_the_classic_interval():
    values = [float(k * k % 17) for k in range(12)]
    made = of_means(values)
    assert made.value == pytest.approx(statistics.fmean(values))
    assert made.half == pytest.approx(2.201 * statistics.stdev(values) / math.sqrt(12), rel=1e-3)
    assert made.bias == pytest.approx(0, abs=1e-12)


def test_a_bias_of_one_over_n_is_taken_out():
    g, n = 20, 1000
    made = jackknife(3.0 + 50 / n, [3.0 + 50 / (n - n / g)] * g)
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
        jackknife(1.0, [1.0] * 9)


def test_an_estimate_reads_as_a_figure():
    assert str(Estimate(0.1234, 0.1, 0.2)) == "0.123 ± 0.050"
