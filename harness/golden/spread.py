"""How far rounding can lead a `more_smooth` run off its path, position by position.

Rounding moves logits by 1e-5. A soft choice divides by τ, which is tiny: where two codes are all but equal the choice
moves a hundred times as far, f_hat with it, and so the logits of all later scales. How far is measured here on the
plain sampler alone: float32 runs, their logits nudged by what rounding does, against float64. Where the best codes of a
choice lie within the budget so found, in units of τ, the choice is a soft tie (`choice`): more runs take it both ways.

Promise: nothing here sees the recording that is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.golden.cases import RecordedCase
from harness.golden.choice import Choices, choices, soft_ties, tossed
from harness.golden.nudged import Nudge, as_they_are, nudged
from harness.protocol.trace import Trace

# Runs that are nudged by rounding alone, and pairs of runs that take every soft tie the one way and the other.
RUNS, PAIRS = 8, 2
# How much farther than the farthest nudged run a right sampler may be. Twelve digits cases recorded with AVX2 and with
# SSE alone were at most 0.42 times as far apart as this allows, at any position of f_hat (scripts/soft_campaign.py).
FACTOR = 4.0


@dataclass(frozen=True)
class Spread:
    """How far from `exact` rounding may lead.

    Args:
        exact: the float64 run.
        rms_BL: the guided logits of a position, root mean square over codes.
        peak_BL: any one of them.
        map_SBPP: f_hat after every scale, any channel; with given inputs, what every scale adds to it.
        ties_BL: the soft ties.
    """

    exact: Trace
    rms_BL: Tensor
    peak_BL: Tensor
    map_SBPP: Tensor
    ties_BL: Tensor


@torch.inference_mode()
def spread(case: RecordedCase, error: float, raw: Mapping[int, Tensor] | None = None) -> Spread:
    """Measure how far rounding can lead a case.

    Args:
        case: with `more_smooth`.
        error: root mean square of what rounding does to a logit before guidance.
        raw: inputs that the run is given (`nudged.raw_inputs`); None = its own.

    Draws: from generators of its own.
    """

    def run(nudge: Nudge) -> Trace:
        return replace(case, models=nudged(case.models, nudge, raw)).run()

    exact = replace(case, models=nudged(case.models.wide(), as_they_are, raw)).run()
    chosen, steps = choices(case, guided(exact)), raw is not None
    calm, pyramid = _Farthest(exact, chosen, steps), case.models.pyramid
    for k in range(RUNS):
        calm.add(run(_Rounding(error, k)))
    reach_BLV = FACTOR * calm.apart_BLV
    ties_BL = soft_ties(case, guided(exact), chosen, reach_BLV)
    both = _Farthest(exact, chosen, steps)
    for k in range(2 * PAIRS if bool(ties_BL.any()) else 0):
        shift_BLV = (-1) ** k * tossed(chosen, k // 2) * reach_BLV * ties_BL[..., None]
        shifts = {pyramid.tokens(si): shift_BLV[:, pyramid.span(si)] for si in pyramid}
        both.add(run(_Rounding(error, k, shifts)), shift_BLV)
    rms_BL, peak_BL, map_SBPP = (
        torch.maximum(FACTOR * of_calm, of_both) for of_calm, of_both in zip(calm.farthest, both.farthest, strict=True)
    )
    return Spread(exact, rms_BL, peak_BL, map_SBPP, ties_BL)


class _Farthest:
    """The farthest of some runs from the exact one, position by position."""

    def __init__(self, exact: Trace, chosen: Choices, steps: bool) -> None:
        self.exact_BLV, self.best_BL1, self.steps = guided(exact), chosen.best_BL2[..., :1], steps
        self.exact_SBCPP = maps(exact, steps)
        nowhere = self.exact_BLV.new_zeros(())  # of no run yet; any shape
        self.apart_BLV = self.rms_BL = self.peak_BL = self.map_SBPP = nowhere  # apart: a code against the best one

    @property
    def farthest(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return rms_BL, peak_BL and map_SBPP."""
        return self.rms_BL, self.peak_BL, self.map_SBPP

    def add(self, run: Trace, shift_BLV: Tensor | float = 0.0) -> None:
        """Take one more run into account; how far it was shifted itself does not count."""
        moved_BLV = guided(run).double() - self.exact_BLV - shift_BLV
        moved_SBCPP = maps(run, self.steps).double() - self.exact_SBCPP
        apart_BLV = moved_BLV - moved_BLV.gather(-1, self.best_BL1)
        self.apart_BLV = torch.maximum(self.apart_BLV, apart_BLV.abs())
        self.rms_BL = torch.maximum(self.rms_BL, moved_BLV.square().mean(-1).sqrt())
        self.peak_BL = torch.maximum(self.peak_BL, moved_BLV.abs().amax(-1))
        self.map_SBPP = torch.maximum(self.map_SBPP, moved_SBCPP.abs().amax(2))


@dataclass
class _Rounding:
    """A nudge of the size of rounding, from a generator of its own, and shifts of the guided logits besides.

    Args:
        error: root mean square of the nudge.
        seed: of the generator.
        shifts: shift_BlV by number of tokens, which tells the scales of a pyramid apart.
    """

    error: float
    seed: int
    shifts: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits_RlV: Tensor) -> Tensor:
        """Return the logits, moved; both guidance rows by the same shift, so that the guided ones move by it."""
        noise_RlV = torch.randn(logits_RlV.shape, generator=self.generator)
        moved_RlV = logits_RlV.add(noise_RlV.type_as(logits_RlV), alpha=self.error)
        shift_BlV = self.shifts.get(logits_RlV.shape[1])
        if shift_BlV is None:
            return moved_RlV
        return moved_RlV + torch.cat((shift_BlV, shift_BlV)).type_as(logits_RlV)


def guided(trace: Trace) -> Tensor:
    """Return guided_BLV of a plain sampler's run."""
    assert trace.intermediates is not None
    return trace.intermediates.guided_BLV


def f_hats(trace: Trace) -> Tensor:
    """Return f_hat_SBCPP of a plain sampler's run."""
    assert trace.intermediates is not None
    return trace.intermediates.f_hat_SBCPP


def maps(trace: Trace, steps: bool) -> Tensor:
    """Return f_hat_SBCPP of a plain sampler's run, or what every scale adds to it."""
    return added(f_hats(trace)) if steps else f_hats(trace)


def added(f_hat_SBCPP: Tensor) -> Tensor:
    """Return what every scale adds to f_hat."""
    return torch.cat((f_hat_SBCPP[:1], f_hat_SBCPP[1:] - f_hat_SBCPP[:-1]))
