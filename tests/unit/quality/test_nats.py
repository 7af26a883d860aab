"""The interval of a loss in nats: its coverage, what it assumes, and what a measurement says of decoders."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from harness.decoders._factory import OWN_DECODER
from harness.protocol import Settings
from harness.protocol.pyramid import ScalePyramid
from harness.quality._distances import Estimate
from harness.quality._nats import MOST_A_TOKEN, NOT_SHOWN, _margin, loss_in_nats, nats_text, sequence
from harness.quality._study import NO_MEANS, Measured, Study, decoder_sources, run_study
from harness.speculative.sampler import build_decoder
from scripts.measured import read_quality
from tests.toy import toy_pair
from tests.unit.quality.means import corners
from tests.unit.quality.test_study import IN_PROCESS, REQUEST

MODELS = toy_pair(ScalePyramid((1, 2, 3)), 6, seed=1, apart=1.0)
REPEATS = 200
LOOKS = (10, 30, 100, 300)  # images


def drawn(kind: str, images: int) -> tuple[Tensor, Tensor]:
    """Return losses of images, at most 10, in columns of repeats, and their expectations, which need not be equal."""
    generator = torch.Generator().manual_seed(0)
    u_NT = torch.rand(images, REPEATS, generator=generator, dtype=torch.float64)
    labels_N1 = (torch.arange(images, dtype=torch.float64) % 2)[:, None]
    if kind == "rare":  # most images lose nothing
        return 10 * (u_NT < 0.03).double(), torch.full_like(u_NT, 0.3)
    if kind == "labels in turn":
        return u_NT + 6 * labels_N1, 0.5 + 6 * labels_N1.expand_as(u_NT)
    return -2 * torch.log1p(-u_NT * (1 - math.exp(-5))), torch.full_like(u_NT, 2 - 10 / math.expm1(5))


@pytest.mark.parametrize("kind", ["rare", "labels in turn", "exponential"])
def test_the_interval_covers_at_every_look_in_95_of_100(kind: str):
    lost_NT, mean_NT = drawn(kind, LOOKS[-1])
    covered = torch.ones(REPEATS, dtype=torch.bool)
    for n in LOOKS:
        ends = [(each.low, each.high) for each in sequence(lost_NT[:n], 10.0, lost_NT[:n])]
        truth_T, (low_T, high_T) = mean_NT[:n].mean(0), torch.tensor(ends, dtype=torch.float64).T
        covered &= (low_T <= truth_T) & (truth_T <= high_T)
    assert int(covered.sum()) >= 0.95 * REPEATS


def test_the_interval_narrows():
    few, many = (sequence(lost, 10.0, lost)[0] for n in (100, 10_000) for lost in (drawn("exponential", n)[0][:, :1],))
    assert many.half < few.half / 5
    assert many.half < 0.15
    nothing = torch.zeros(1000, 1, dtype=torch.float64)
    assert sequence(nothing, 50.0, nothing)[0].high < 0.4


def test_a_forecast_stays_within_the_scale():
    """Beyond it the product is no supermartingale, and the margin would be too narrow."""
    small, large = (float(_margin(torch.full((1000, 1), x, dtype=torch.float64), 1.0, 0.025)) for x in (0.5, 5.0))
    assert large > 5 * small


def test_an_image_beyond_the_bound_takes_the_upper_end_away_and_leaves_the_lower_one():
    lost_NS = torch.full((500, 2), 2.0)
    (_, _, total), why = loss_in_nats(torch.cat((lost_NS, lost_NS), 1), draws=100)
    assert (total.value, why) == (4.0, "")
    assert total.low > 3
    assert total.high < 5
    lost_NS[7] = 100 * MOST_A_TOKEN
    (_, _, total), why = loss_in_nats(torch.cat((lost_NS, lost_NS), 1), draws=100)
    assert why == "an image loses 20 nats, and the upper end assumes 10 at most"
    assert total.high == math.inf
    assert total.low > 3
    assert nats_text(total).startswith(">= 3.")


def test_what_rounding_hides_counts_at_the_upper_end_alone():
    lost_NS, hidden_NS = torch.zeros(500, 2), torch.full((500, 2), 1.5)
    (_, _, total), why = loss_in_nats(torch.cat((lost_NS, hidden_NS), 1), draws=100)
    assert (total.value, total.low, why) == (0, 0, "")
    assert 3 < total.high < 4
    (_, _, total), why = loss_in_nats(torch.cat((lost_NS, 4 * hidden_NS), 1), draws=100)
    assert total.high == math.inf
    assert why == "an image loses up to 12 nats, as far as rounding hides it, and the upper end assumes 10 at most"


def test_an_infinite_loss_is_infinite():
    lost_NS = torch.zeros(100, 2)
    lost_NS[50, 1] = math.inf
    (first, second, total), _ = loss_in_nats(torch.cat((lost_NS, lost_NS), 1), draws=100)
    assert [nats_text(each) for each in (first, second, total)] == [">= 0", "infinite", "infinite"]


def test_without_a_law_there_is_a_lower_end_alone():
    won_NAS = torch.full((400, 3, 2), -0.5)
    won_NAS[:, 1, 0] = 1.5  # the second alternative, at scale 0
    (first, second, total), why = loss_in_nats(won_NAS, draws=100)
    assert why == NOT_SHOWN
    assert 1 < first.low < 1.5
    assert 1 < total.low < 1.5
    assert second.low == 0
    assert first.high == second.high == total.high == math.inf


class Silent:
    """The harness's own decoder, which shows no law."""

    contract = "quality-preserving"

    def __init__(self, models, settings) -> None:
        self.inner = build_decoder(models, replace(settings, policy="handoff:2"))

    def decode(self, request, noise):
        trace = self.inner.decode(request, noise)
        return replace(trace, law_BLV=None)


class Liar(Silent):
    """It shows another law than it draws from."""

    def decode(self, request, noise):
        trace = self.inner.decode(request, noise)
        return replace(trace, law_BLV=trace.law_BLV.flip(-1))


class Moody(Silent):
    """It shows its law of some images."""

    def decode(self, request, noise):
        trace = self.inner.decode(request, noise)
        return trace if request.addresses[0][1] % 2 else replace(trace, law_BLV=None)


@cache
def study() -> Measured:
    own = decoder_sources(OWN_DECODER, [Settings(3, policy=policy) for policy in ("coupled", "handoff:2", "kl:0.001")])
    others = [decoder_sources(f"{__name__}:{name}", [Settings(3)])[0] for name in ("Silent", "Liar", "Moody")]
    asked = Study([*own, *others], 200, 25, (0, 1), REQUEST, most_nats=0.05)
    return run_study(MODELS, NO_MEANS, asked, IN_PROCESS)


def test_a_measurement_says_what_every_decoder_loses():
    first, *rows = study().rows
    assert first.name == "sequential"
    coupled, handoff, _, silent, liar, moody = rows
    assert (coupled.nats.value, coupled.nats.low) == (0, 0)
    assert [each.value > 0 for each in handoff.nats_S] == [True, True, False]  # two scales are the draft's
    assert handoff.nats.value == pytest.approx(sum(each.value for each in handoff.nats_S))
    assert 0 < silent.nats.low < handoff.nats.value < silent.nats.high == math.inf
    assert "the law that is shown" in liar.failed
    assert (moody.nats, moody.nats_open) == (None, "it shows a law of some images alone")
    expected = ["KEPT", "LOST", "KEPT", "LOST", "LOST", "INCONCLUSIVE"]
    assert [each.value for each in study().verdicts] == expected


def test_it_is_written_and_read_back(tmp_path):
    file = tmp_path / "q.json"
    file.write_bytes(study().document())
    again = read_quality(file)
    assert [(row.nats, row.nats_S, row.nats_open) for row in again.rows] == [
        (row.nats, row.nats_S, row.nats_open) for row in study().rows
    ]
    assert again.verdicts == study().verdicts


def test_nats_stand_beside_both_distances():
    asked = Study(decoder_sources(OWN_DECODER, [Settings(3, policy="handoff:2")]), 80, 40, (0, 1), REQUEST)
    row = run_study(MODELS, corners(), asked, IN_PROCESS).rows[-1]
    assert row.drift is not None
    assert isinstance(row.nats, Estimate)


@pytest.mark.parametrize(("most", "drawn"), [(0.05, 100), (0.5, 200), (1.3, 400)])
def test_a_loss_that_no_other_image_makes_up_for_ends_the_drawing(most: float, drawn: int):
    """After 100 images the loss is above 1.2 for certain: with 300 that lose nothing the mean may be 0.3."""
    own = decoder_sources(OWN_DECODER, [Settings(3, policy="handoff:2")])
    seen = list[int]()
    found = run_study(MODELS, NO_MEANS, Study(own, 400, 25, (0, 1), REQUEST, most_nats=most), IN_PROCESS, seen.append)
    assert (found.rows[1].images, sum(seen)) == (drawn, 2 * drawn)
    assert f"above {most:g} in {drawn} images" in found.why(found.rows[1])


def test_all_images_are_drawn_where_another_decoder_or_a_distance_is_open():
    assert {row.images for row in study().rows} == {200}
    own = decoder_sources(OWN_DECODER, [Settings(3, policy="handoff:2")])
    asked = Study(own, 400, 100, (0, 1), REQUEST, most=0.1, most_nats=0.05)
    assert run_study(MODELS, corners(), asked, IN_PROCESS).rows[1].images == 400
