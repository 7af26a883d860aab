"""How far rounding may move a recorded case.

Promise: an allowance is measured on the plain samplers against float64 and capped, or is a stated number; it is never
derived from the difference that it is to judge, and a wrong plain sampler cannot widen it far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import Tensor

from harness.golden.cases import RecordedCase
from harness.judge.compare import largest_difference
from harness.protocol.trace import Trace
from harness.rounding.budget import Allowance, Budget
from harness.rounding.measure import quick


@dataclass(frozen=True)
class Limit:
    """A number that a recording is judged by.

    Args:
        name: of what it bounds.
        limit: the number.
        reason: where it comes from.
    """

    name: str
    limit: float
    reason: str


TABLE = (
    Limit("image", 1e-5, "absolute: the decoder of 32-pixel images rounds by 1e-6 between two CPU set-ups; ten times"),
    Limit("logits cap", 1e-5, "of the largest logit, times 1 + 2·|t|: budgets of the plain sampler reached 2.6e-6"),
    Limit("f_hat cap", 4e-6, "of the largest number in f_hat, at least 1: budgets reached 8.1e-7"),
    Limit("smooth f_hat, cpu", 2e-2, "absolute: `more_smooth` amplifies rounding by up to 200; the recordings' README"),
    Limit("smooth f_hat, cuda", 5e-2, "absolute: one recorded case is 3.7e-2 from float64, and the run here 7e-3"),
    Limit("smooth image", 1e-2, "absolute: the recordings' README"),
    Limit("smooth ties", 0.005, "share of a case's draws: \"very few tokens\" in the recordings' README"),
    Limit("smooth logits", 4.0, "times the free run's own error against float64: one run is a sample of one"),
    Limit("smooth logits cap", 0.25, "absolute: with a margin bound of half a nat some judgement is left"),
    Limit("smooth spread", 32.0, "times float64's distance, for f_hat: three recorded runs met 0.3 to 2.2 times it"),
)
LIMITS = {row.name: row.limit for row in TABLE}


@dataclass(frozen=True)
class Allowances:
    """What one case may be off by.

    Args:
        logits_S: of guided logits, by scale.
        f_hat_S: largest difference from the recorded f_hat after every scale.
        image: largest difference from the recorded image.
    """

    logits_S: tuple[Allowance, ...]
    f_hat_S: tuple[float, ...]
    image: float


def allowances(case: RecordedCase, run: Trace) -> Allowances:
    """Return what a case may be off by.

    Args:
        case: recorded.
        run: of it, made here; its largest numbers scale the caps.
    """
    return _smooth(case, run) if case.request.more_smooth else _plain(case, run)


def _plain(case: RecordedCase, run: Trace) -> Allowances:
    """The plain sampler is what a golden judges, so its own error must not excuse it: a budget is capped."""
    assert run.intermediates is not None
    # of several networks that decide tokens, the one that rounds most
    sides = [quick(replace(case.models, draft=network, target=network)) for network in case.sides()]
    worst = max(sides, key=lambda budget: budget.rows)
    rows = min(worst.rows, LIMITS["logits cap"] * float(run.intermediates.rows_RLV.abs().max()))
    f_hat = min(
        max(budget.f_hat for budget in sides),
        LIMITS["f_hat cap"] * max(1.0, float(run.intermediates.f_hat_SBCPP.abs().max())),
    )
    budget, pyramid = Budget(rows, worst.rows_rms, f_hat, worst.source), case.models.pyramid
    logits_S = tuple(budget.guided(case.request.cfg, pyramid.ramp(si)) for si in pyramid)
    return Allowances(logits_S, (2 * f_hat,) * pyramid.S, LIMITS["image"])  # both sides may be off


def _smooth(case: RecordedCase, run: Trace) -> Allowances:
    """Float32 against float64 of the same free run: no token is consumed, so both stay aligned."""
    exact, cap = case.exact(), LIMITS[f"smooth f_hat, {case.models.device.type}"]
    logits_S = [
        min(LIMITS["smooth logits"] * error, LIMITS["smooth logits cap"])
        for error in _errors(case, run, exact, _guided)
    ]
    f_hat_S = tuple(min(LIMITS["smooth spread"] * error, cap) for error in _errors(case, run, exact, _f_hat))
    by_scale = tuple(Allowance(error, error, cap, "float64 free run") for error in logits_S)
    return Allowances(by_scale, f_hat_S, LIMITS["smooth image"])


def _errors(
    case: RecordedCase, run: Trace, exact: Trace, part: Callable[[RecordedCase, Trace, int], Tensor]
) -> list[float]:
    """Return the largest difference so far, by scale."""
    errors = [largest_difference(part(case, run, si), part(case, exact, si)) for si in case.models.pyramid]
    return list(accumulate(errors, max))


def _guided(case: RecordedCase, trace: Trace, si: int) -> Tensor:
    assert trace.intermediates is not None
    return trace.intermediates.guided_BLV[:, case.models.pyramid.span(si)]


def _f_hat(case: RecordedCase, trace: Trace, si: int) -> Tensor:
    assert trace.intermediates is not None
    return trace.intermediates.f_hat_SBCPP[si]
