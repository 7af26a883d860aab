"""How far rounding may move a recorded case.

Promise: an allowance is measured on the plain samplers against float64 and capped, or is a stated number; it is never
derived from the difference that it is to judge, and a wrong plain sampler cannot widen it far.
"""

from dataclasses import dataclass, replace

from harness.golden._cases import RecordedCase
from harness.protocol import Trace
from harness.rounding import BUDGET_MARGIN, Budget, quick_budget

# Numbers that a recording is judged by: of what, and where each comes from.
LIMITS = {
    "image": 1e-5,  # absolute: the decoder of 32-pixel images rounds by 1e-6 between two CPU set-ups; ten times
    "logits cap": 1e-5,  # of the largest logit, times 1 + 2·|t|: budgets of the plain sampler reached 2.6e-6
    "f_hat cap": 4e-6,  # of the largest number in f_hat, at least 1: budgets reached 8.1e-7
    "smooth rounding": 2e-6,  # of the largest logit before guidance: digits reached 5e-7, tiny networks 9e-7
    "smooth f_hat": 2e-2,  # absolute: the recordings' README; where rounding may do more, f_hat is not judged
    "smooth margin": 0.25,  # absolute, of a race: a quarter of a nat is judgement; where rounding may do more, none
    "smooth logits": 0.5,  # absolute, of any one logit of a position: twice that margin
    "smooth ties": 0.005,  # share of a case's draws: "very few tokens" in the recordings' README
}


@dataclass(frozen=True)
class Allowances:
    """What one case may be off by."""

    logits_S: tuple[float, ...]  # largest difference of a guided logit from float64, by scale
    f_hat: float  # largest difference from the recorded f_hat, after any scale
    image: float  # largest difference from the recorded image


def allowances(case: RecordedCase, run: Trace) -> Allowances:
    """Return what a case may be off by whose f_hat is a function of its tokens; its run here scales the caps.

    The plain sampler is what a golden judges, so its own error must not excuse it: a budget is capped.
    """
    budgets = _budgets(case)
    worst = max(budgets, key=lambda budget: budget.rows)
    rows = min(worst.rows, LIMITS["logits cap"] * float(run.shown.rows_RLV.abs().max()))
    f_hat = min(
        max(budget.f_hat for budget in budgets),
        LIMITS["f_hat cap"] * max(1.0, float(run.shown.f_hat_SBCPP.abs().max())),
    )
    budget, pyramid = replace(worst, rows=rows), case.models.pyramid
    logits_S = tuple(budget.guided(case.request.guidance, pyramid.ramp(si), si).logits for si in pyramid)
    return Allowances(logits_S, 2 * f_hat, LIMITS["image"])  # both sides may be off


def smooth_rounding(case: RecordedCase, run: Trace) -> float:
    """Return the root mean square of what rounding does to a logit before guidance, capped like a budget."""
    # as measured: `spread` has a factor of its own
    rms = max(budget.rows_rms for budget in _budgets(case)) / BUDGET_MARGIN
    return min(rms, LIMITS["smooth rounding"] * float(run.shown.rows_RLV.abs().max()))


def _budgets(case: RecordedCase) -> list[Budget]:
    """Of the networks that decide tokens, each on its own."""
    return [quick_budget(replace(case.models, target=network)) for network in case.sides()]
