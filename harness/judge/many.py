"""Whether ties, taken together, are as many and as close as rounding makes them.

Promise: a right decoder is accused with probability at most `ALARM` a run, however long the run and wherever in it one
looks; what a single tie may excuse, many may not.

How: each draw has a known chance to come out otherwise under rounding, since the reference's own scores say by how much
every other token loses. With q that chance, the evidence of a tie is −θ·ln q, and the cost of every draw, for having
been free to flip, Σ (q^(1−θ) − q). exp(evidence − cost) has expectation at most 1 for a right decoder (it is an
e-value: a product of such numbers again is one, and so is a mean), so it exceeds 1/ALARM with probability at most
ALARM (Markov). Nothing is pooled before it is weighed: every scale has an e-value of its own, and so has the run.

Source: Vovk and Wang, "E-values: calibration, combination and applications", Annals of Statistics 49 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.rounding.budget import Allowance

ALARM = 1e-6
THETAS = (0.25, 0.5, 0.75)
# An error beyond the largest that was measured (some 1e8 numbers in a calibration) has about this chance.
BEYOND = 1e-8
NOTHING = 1e-60
NEAREST = 16  # rivals of a draw that are looked at; the next one is farther than rounding reaches


@dataclass(frozen=True)
class Tail:
    """How often rounding moves a logit by more than x: at most 2·exp(−½·(x/scale)^power).

    A normal law has power 2. In bfloat16 the largest error is far from the usual one: the power is then what joins the
    two, `scale` as the usual error and `BEYOND` as the chance of the largest.
    """

    scale: float
    power: float

    @classmethod
    def of(cls, allowance: Allowance) -> Tail:
        """Return the law that a scale's allowance speaks of."""
        ratio = allowance.logits / allowance.logits_rms
        power = math.log(-2 * math.log(BEYOND / 2)) / math.log(ratio) if ratio > 1 else 2.0
        return cls(allowance.logits_rms, min(2.0, max(1.0, power)))

    @property
    def reach(self) -> float:
        """The gap beyond which a chance is below `NOTHING`, and whatever it costs is no number of a sum."""
        return float(2 * self.scale * (2 * math.log(4 / NOTHING)) ** (1 / self.power))

    def chance(self, gap: Tensor) -> Tensor:
        """Return a bound on the chance that rounding makes up for a gap between two scores, 0 to 1/2.

        One of the two must have moved by half of it.
        """
        return (4 * torch.exp(-0.5 * (gap.clamp_min(0) / (2 * self.scale)) ** self.power)).clamp(1e-300, 0.5)


def cost(scores_NV: Tensor, tail: Tail) -> list[float]:
    """Return what draws cost for having been free to flip, for every θ.

    Args:
        scores_NV: of the race, logits − ln E, dropped tokens at −inf; N draws of one scale.
        tail: of that scale.
    """
    total: list[float] = costs_N3(scores_NV, tail).sum(0).tolist()
    return total


def costs_N3(scores_NV: Tensor, tail: Tail) -> Tensor:
    """Return what every draw costs, for every θ; float64. Draws without a rival within reach cost nothing."""
    found_N3 = torch.zeros(len(scores_NV), len(THETAS), dtype=torch.float64, device=scores_NV.device)
    near_NV = scores_NV > scores_NV.amax(1, keepdim=True) - tail.reach
    rows = torch.nonzero(near_NV.sum(1) > 1).flatten()
    best_nk = scores_NV[rows].topk(min(NEAREST, scores_NV.shape[1]), dim=1).values.double()
    chance_nk = tail.chance(best_nk[:, :1] - best_nk[:, 1:])
    found_N3[rows] = torch.stack([(chance_nk ** (1 - theta) - chance_nk).sum(1) for theta in THETAS], 1)
    return found_N3


def surprise(margins: Sequence[float], tail: Tail) -> list[float]:
    """Return what ties of these margins weigh, for every θ. Filter ties, of margin 0 or less, weigh nothing."""
    total = -float(tail.chance(torch.tensor([m for m in margins if m > 0], dtype=torch.float64)).log().sum())
    return [theta * total for theta in THETAS]


def log_e(weights: Sequence[float]) -> float:
    """Return the logarithm of the e-value that evidence − cost for every θ makes: the mean over θ."""
    highest = max(weights)
    return highest + math.log(math.fsum(math.exp(weight - highest) for weight in weights) / len(weights))


def too_many(weights: Sequence[float], looks: int = 1) -> bool:
    """Tell whether evidence − cost is more than a right decoder shows with probability `ALARM`.

    Args:
        weights: for every θ.
        looks: how many e-values are looked at, each of which could raise the alarm.
    """
    return log_e(weights) > math.log(looks / ALARM)
