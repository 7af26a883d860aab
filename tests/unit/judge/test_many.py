"""Many ties together: a right decoder is not accused, a wrong one is, however its ties are spread."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from harness import ModelPair, Request, SeededNoise, Settings, Trace, Verdict
from harness.judge.many import ALARM, Tail, cost, log_e, surprise, too_many
from harness.rounding.budget import Allowance
from harness.speculative.build import build_decoder
from tests.helpers import digits, verify_here

RATIO = 7.0  # largest error over the usual one: digits in float32


def run(generator: torch.Generator, usual: float, wrong: int = 0, N: int = 120, V: int = 32) -> tuple[list[float], int]:
    """Draw N tokens by a decoder whose logits are off by `usual`; `wrong` of them under another seed's numbers.

    Returns:
        Evidence less cost for every θ, and the number of tokens that are not the reference's.
    """

    def exponential(rows: int) -> Tensor:
        return torch.empty(rows, V, dtype=torch.float64).exponential_(generator=generator)

    logits_NV = 3 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    scores_NV = logits_NV - exponential(N).log()
    error_NV = usual * torch.randn(N, V, generator=generator, dtype=torch.float64).clamp(-RATIO, RATIO)
    drawn_N = (scores_NV + error_NV).argmax(1)
    drawn_N[:wrong] = (logits_NV[:wrong] - exponential(wrong).log()).argmax(1)
    margin_N = scores_NV.amax(1) - scores_NV.gather(1, drawn_N[:, None])[:, 0]
    # a budget is twice what was measured
    tail = Tail.of(Allowance(2 * RATIO * usual, 2 * usual, 0.0, ""))
    margins = margin_N[margin_N > 0].tolist()
    return [a - b for a, b in zip(surprise(margins, tail), cost(scores_NV, tail), strict=True)], len(margins)


def alarms(count: int, usual: float, wrong: int = 0) -> tuple[int, int]:
    """Return how many of `count` runs raise the alarm, and the number of differing tokens in all of them."""
    generator, found, ties = torch.Generator().manual_seed(0), 0, 0
    for _ in range(count):
        weights, differing = run(generator, usual, wrong)
        found, ties = found + too_many(weights), ties + differing
    return found, ties


@pytest.mark.parametrize("usual", [3e-5, 0.01, 0.1, 0.3])
def test_a_right_decoder_is_not_accused(usual: float):
    found, ties = alarms(200, usual)
    assert found == 0
    assert (ties > 200) is (usual > 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("usual", [0.01, 0.1])
def test_ten_thousand_right_runs_raise_no_alarm(usual: float):
    assert alarms(10_000, usual)[0] == 0


@pytest.mark.parametrize(("usual", "wrong", "least"), [(3e-5, 3, 34), (0.01, 3, 32), (0.03, 6, 38), (0.1, 30, 38)])
def test_other_numbers_are_found_out(usual: float, wrong: int, least: int):
    assert alarms(40, usual, wrong)[0] >= least


def test_runs_add_up_to_what_none_of_them_shows():
    generator = torch.Generator().manual_seed(1)
    right = [run(generator, 0.1)[0] for _ in range(50)]
    assert not too_many([sum(of) for of in zip(*right, strict=True)])
    biased = [run(generator, 0.1, wrong=8)[0] for _ in range(50)]
    assert sum(map(too_many, biased)) < 25
    assert too_many([sum(of) for of in zip(*biased, strict=True)])


def test_the_alarm_is_where_markov_puts_it():
    level = math.log(1 / ALARM)
    assert not too_many([level] * 3)
    assert too_many([level + 1e-9] * 3)
    assert not too_many([level + 1e-9] * 3, looks=2)
    assert log_e([0.0, -1e9, -1e9]) == pytest.approx(math.log(1 / 3))


def test_an_e_value_has_expectation_at_most_one():
    generator = torch.Generator().manual_seed(2)
    values = [math.exp(log_e(run(generator, 0.02)[0])) for _ in range(500)]
    assert sum(values) / len(values) <= 1


def test_the_tail_joins_the_usual_error_and_the_largest():
    assert Tail.of(Allowance(6.0, 1.0, 0.0, "")).power == 2  # a normal law reaches six times its usual error
    heavy = Tail.of(Allowance(20.0, 1.0, 0.0, ""))
    assert 1 < heavy.power < 2
    chance = 2 * math.exp(-0.5 * 20.0**heavy.power)
    assert chance == pytest.approx(1e-8)


def test_the_chance_of_a_gap_is_that_one_of_two_moves_by_half_of_it():
    tail = Tail(0.5, 2.0)
    found = tail.chance(torch.tensor([-1.0, 0.0, 3.0, 5.0, 1e9], dtype=torch.float64)).tolist()
    assert found == [0.5, 0.5, pytest.approx(4 * math.exp(-4.5)), pytest.approx(4 * math.exp(-12.5)), 1e-300]
    assert Tail(0.5, 1.5).chance(torch.tensor(4.0)).item() == pytest.approx(4 * math.exp(-0.5 * 4**1.5))


def test_a_draw_costs_what_its_rivals_may_flip():
    tail = Tail(0.5, 2.0)
    q, r = 4 * math.exp(-0.5 * 3.0**2), 4 * math.exp(-0.5 * 4.0**2)
    scores_NV = torch.tensor([[3.0, 0.0, -1.0], [-1.0, 2.0, -math.inf]])
    due = [(2 * q ** (1 - theta) - 2 * q) + (r ** (1 - theta) - r) for theta in (0.25, 0.5, 0.75)]
    floor = [1e-300 ** (1 - theta) for theta in (0.25, 0.5, 0.75)]
    assert cost(scores_NV, tail) == pytest.approx([a + b for a, b in zip(due, floor, strict=True)], rel=1e-12)
    assert cost(scores_NV[:, :1], tail) == [0.0, 0.0, 0.0]  # nobody to flip to
    wide_NV = torch.arange(40.0).mul(1e-3)[None]
    one = 0.5 ** (1 - 0.25) - 0.5
    assert cost(wide_NV, tail)[0] == pytest.approx(15 * one)  # the sixteen nearest


def test_ties_weigh_by_their_margins_and_filter_ties_nothing():
    tail = Tail(0.5, 2.0)
    due = -math.log(4 * math.exp(-4.5)) - math.log(4 * math.exp(-8.0))
    assert surprise([3.0, 4.0, 0.0, -2.0], tail) == pytest.approx([0.25 * due, 0.5 * due, 0.75 * due], rel=1e-12)
    assert surprise([], tail) == [0.0, 0.0, 0.0]


def test_an_e_value_is_the_mean_over_theta_without_overflow():
    assert log_e([1.0, 2.0, 3.0]) == pytest.approx(math.log((math.e + math.e**2 + math.e**3) / 3))
    assert log_e([1e6, 1e6, 1e6]) == pytest.approx(1e6)


def test_an_error_without_a_tail_is_a_normal_one():
    assert Tail.of(Allowance(1.0, 1.0, 0.0, "")) == Tail(1.0, 2.0)
    assert Tail.of(Allowance(0.5, 1.0, 0.0, "")) == Tail(1.0, 2.0)
    assert Tail.of(Allowance(1.001, 1.0, 0.0, "")) == Tail(1.0, 2.0)
    assert Tail.of(Allowance(1e9, 1.0, 0.0, "")) == Tail(1.0, 1.0)


class BlindAtOneScale:
    """A decoder that shows no tensors and takes another seed's numbers at one scale."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, scale: int) -> None:
        self.models, self.scale = models, scale
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        trace = self.inner.decode(request, OtherAt(noise, self.models, request, self.scale))
        trace.intermediates = None
        return trace


class OtherAt:
    """The true numbers but at one scale."""

    def __init__(self, noise: SeededNoise, models: ModelPair, request: Request, scale: int) -> None:
        self.noise, self.scale = noise, scale
        self.other = models.noise(Request(request.labels, request.seed + 1, images=request.images))

    def labels(self, classes: int) -> Tensor:
        return self.noise.labels(classes)

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        return (self.other if si == self.scale else self.noise).exponential(si, stream, reader)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        return self.noise.uniform(si, stream, reader)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [-1, 0, 1])
def test_other_numbers_at_one_scale_are_no_ties_in_bfloat16(scale: int):
    models, request = digits().to("cpu", torch.bfloat16), Request((0, 1, 2, 3), 0)
    result = verify_here(models, lambda m, s: BlindAtOneScale(m, s, scale), [Settings(5)], [request])
    assert result.verdict is (Verdict.TIE if scale < 0 else Verdict.DEFECT)
    if scale >= 0:
        assert {d.scale for j in result.settings[0].judgements for d in j.defects} == {scale}
