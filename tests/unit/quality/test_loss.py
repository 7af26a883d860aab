"""KEPT, LOST, INCONCLUSIVE: on which side both losses lie, and which N would decide."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from harness.errors import InputError
from harness.quality._distances import Estimate
from harness.quality._rows import (
    Quality,
    QualityRow,
    check_loss,
    images_to_decide,
    images_to_resolve,
    judge_quality,
    quality_verdict,
    worst,
)

ZERO, SMALL, LARGE = Estimate(0.0, -0.05, 0.05), Estimate(0.05, 0.0, 0.12), Estimate(0.5, 0.3, 0.7)
ROW = QualityRow("a decoder", "C", "5", 1000, width=42, loss=ZERO, drift=ZERO)


@pytest.mark.parametrize(
    ("loss", "drift", "expected"),
    [
        (ZERO, ZERO, "KEPT"),
        (None, ZERO, "KEPT"),
        (ZERO, SMALL, "INCONCLUSIVE"),
        (SMALL, ZERO, "INCONCLUSIVE"),
        (ZERO, LARGE, "LOST"),
        (LARGE, ZERO, "LOST"),
        (SMALL, LARGE, "LOST"),
        (Estimate(-2.0, -2.1, -1.9), ZERO, "KEPT"),
        (Estimate(-2.0, -2.1, -1.9), LARGE, "LOST"),
        (None, None, "INCONCLUSIVE"),
        (Estimate(0.05, 0.0, 0.1), ZERO, "INCONCLUSIVE"),
        (Estimate(0.2, 0.1, 0.3), ZERO, "INCONCLUSIVE"),
    ],
)
def test_the_verdict(loss: Estimate | None, drift: Estimate | None, expected: str):
    assert quality_verdict(replace(ROW, loss=loss, drift=drift), 0.1).value == expected


def test_no_image_is_lost():
    assert quality_verdict(replace(ROW, failed="crash"), 0.1) is Quality.LOST


def test_too_few_images_decide_nothing():
    few = replace(ROW, images=419, drift=LARGE)
    assert quality_verdict(few, 0.1) is Quality.INCONCLUSIVE
    assert judge_quality(few, 0.1)[1] == "419 images are too few for 42 features: 420 or more would decide"
    assert quality_verdict(replace(few, images=420), 0.1) is Quality.LOST


def test_the_reason_names_what_decides():
    assert judge_quality(ROW, 0.1)[1] == "loss 0.000 ± 0.050 and drift 0.000 ± 0.050, below 0.1"
    assert judge_quality(replace(ROW, drift=LARGE), 0.1)[1] == "drift 0.500 ± 0.200, above 0.1"
    assert judge_quality(replace(ROW, drift=SMALL), 0.1)[1] == (
        "drift 0.050 ± 0.060, not on one side of 0.1: about 1500 images would decide"
    )
    assert judge_quality(replace(ROW, loss=None, drift=None), 0.1)[1].startswith("nothing was measured")


def test_how_many_images():
    assert images_to_decide(1000, [ZERO, SMALL], 0.1) == 1500
    assert images_to_resolve([SMALL], 1000, 0.1) == 1500
    assert images_to_resolve([ZERO], 1000, 0.1) == 1000


def test_the_worst_is_lost():
    assert worst([Quality.KEPT, Quality.LOST, Quality.INCONCLUSIVE]) is Quality.LOST
    assert worst([Quality.KEPT, Quality.INCONCLUSIVE]) is Quality.INCONCLUSIVE
    assert worst([]) is Quality.INCONCLUSIVE
    assert [each.exit_status for each in Quality] == [0, 1, 3]


@pytest.mark.parametrize("most", [0.0, -1.0, float("nan"), float("inf")])
def test_a_loss_that_nothing_could_show_is_refused(most: float):
    with pytest.raises(InputError, match=r"^max_nats=.*must be above 0.*pass --max-loss 0.1, --max-nats 0.5"):
        check_loss("max_nats", most)


@pytest.mark.parametrize(
    ("nats", "why", "expected", "clause"),
    [
        (Estimate(0.2, 0.1, 0.4), "", "KEPT", "0.200 [0.100, 0.400] nats, below 0.5"),
        (
            Estimate(0.9, 0.6, 1.4),
            "",
            "LOST",
            "0.900 [0.600, 1.400] nats, above 0.5 in 1000 images; scale 1 loses most",
        ),
        (Estimate(0.9, 0.6, math.inf), "no law", "LOST", ">= 0.6 nats, above 0.5 in 1000 images; scale 1 loses most"),
        (
            Estimate(math.inf, math.inf, math.inf),
            "",
            "LOST",
            "infinite nats, above 0.5 in 1000 images; scale 1 loses most",
        ),
        (Estimate(0.0, 0.0, math.inf), "no law", "INCONCLUSIVE", ">= 0 nats, and no upper end: no law"),
        (Estimate(0.4, 0.3, 0.6), "", "INCONCLUSIVE", "0.400 [0.300, 0.600] nats, not on one side of 0.5: about 2300"),
        (None, "", "KEPT", "it is the target's law"),
        (None, "of some images alone", "INCONCLUSIVE", "of some images alone"),
    ],
)
def test_the_verdict_in_nats(nats: Estimate | None, why: str, expected: str, clause: str):
    by_scale = (ZERO, nats or ZERO, SMALL)
    row = replace(ROW, images=1000, nats=nats, nats_S=by_scale, nats_open=why)
    assert quality_verdict(row, None, 0.5).value == expected
    assert judge_quality(row, None, 0.5)[1].startswith(clause)


def test_the_worse_of_two_verdicts_counts_and_is_explained():
    row = replace(ROW, nats=Estimate(0.9, 0.6, 1.4), nats_S=(ZERO,))
    assert (quality_verdict(row, 0.1).value, quality_verdict(row, 0.1, 0.5).value) == ("KEPT", "LOST")
    assert judge_quality(row, 0.1, 0.5)[1] == "0.900 [0.600, 1.400] nats, above 0.5 in 1000 images; scale 0 loses most"
    assert quality_verdict(replace(row, nats=ZERO), 0.1, 0.5) is Quality.KEPT
    assert " and drift 0.000 ± 0.050, below 0.1; 0.000 [" in judge_quality(replace(row, nats=ZERO), 0.1, 0.5)[1]
