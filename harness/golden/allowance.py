"""How far rounding may move a recorded case.

Promise: an allowance is measured on the plain samplers against float64 and capped, or is a stated number; it is never
derived from the difference that it is to judge, and a wrong plain sampler cannot widen it far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from threading import Lock

from torch import Tensor

from harness.golden.cases import RecordedCase
from harness.judge.compare import largest_difference
from harness.models.network import Network
from harness.protocol.trace import Trace
from harness.rounding.budget import SAFETY, Budget, calibrate

# The decoder of 32-pixel images rounds by 1e-6 between two CPU set-ups; the next power of ten above ten times less.
IMAGE = 1e-5
# The plain sampler is what a golden judges, so its own error must not excuse it: a budget is capped, relative to the
# largest logit before guidance, times 1 + 2·cfg, and to the largest f_hat. Calibrated on the digits and five filled
# layouts with cfg 0 to 4, budgets reached 3.0e-6 and 1.1e-6 of these.
LOGITS_CAP, F_HAT_CAP = 1e-5, 4e-6
# `more_smooth` amplifies rounding by 1/τ, up to 200: what the recordings' README allows.
# On CUDA one recorded case is itself 3.7e-2 from float64, and the run here 7e-3; 17 of 8,192 numbers pass 1e-2.
SMOOTH_F_HAT, SMOOTH_IMAGE = {"cpu": 2e-2, "cuda": 5e-2}, 1e-2
SMOOTH_TIES = 0.005  # "very few tokens": share of a case's draws
SMOOTH_LOGITS = 0.25  # cap of a measured smooth budget: with a margin bound of half a nat some judgement is left
SMOOTH_SPREAD = 32.0  # one rounding is amplified by chance: three recorded runs met 0.3 to 2.2 times float64's distance


class Budgets:
    """Allowances by case; what was calibrated is kept for the next case of the same networks, which `cases` keeps."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[tuple[int, float], Budget] = {}
        self._f_hat: dict[int, float] = {}

    def logits(self, case: RecordedCase, run: Trace) -> list[Budget]:
        """Return the budget of guided logits at every scale."""
        if case.request.more_smooth:
            cap = SMOOTH_F_HAT[case.models.device.type]
            errors = [min(SAFETY * error, SMOOTH_LOGITS) for error in _smooth_errors(case, run, _guided)]
            return [Budget(error, error, cap, "float64 free run") for error in errors]
        # of several networks that decide tokens, the one that rounds most
        worst = max((self._of(case, network) for network in case.sides()), key=lambda budget: budget.logits)
        assert run.intermediates is not None
        cap = LOGITS_CAP * (1 + 2 * abs(case.request.cfg)) * float(run.intermediates.rows_RLV.abs().max())
        return [replace(worst, logits=min(worst.logits, cap))] * case.models.pyramid.S

    def f_hat(self, case: RecordedCase, run: Trace) -> list[float]:
        """Return the largest difference allowed in f_hat after every scale."""
        if case.request.more_smooth:
            return [
                min(SMOOTH_SPREAD * error, SMOOTH_F_HAT[case.models.device.type])
                for error in _smooth_errors(case, run, _f_hat)
            ]
        key = id(case.models.vae)  # f_hat is a function of tokens and quantiser alone
        if key not in self._f_hat:
            self._f_hat[key] = self._of(case, case.sides()[-1]).f_hat
        assert run.intermediates is not None
        cap = F_HAT_CAP * max(1.0, float(run.intermediates.f_hat_SBCPP.abs().max()))
        return [2 * min(self._f_hat[key], cap)] * case.models.pyramid.S

    def image(self, case: RecordedCase) -> float:
        """Return the largest difference allowed in the image."""
        return SMOOTH_IMAGE if case.request.more_smooth else IMAGE

    def _of(self, case: RecordedCase, network: Network) -> Budget:
        key = (id(network), case.request.cfg)
        with self._lock:  # cases are judged side by side
            if key not in self._kept:
                models = replace(case.models, draft=network, target=network)
                self._kept[key] = calibrate(models, replace(case.request, more_smooth=False))
            return self._kept[key]


def _smooth_errors(case: RecordedCase, run: Trace, part: Callable[[RecordedCase, Trace, int], Tensor]) -> list[float]:
    """Float32 against float64 of the same free run, largest so far: no token is consumed, so both stay aligned."""
    exact = case.exact()
    errors = [largest_difference(part(case, run, si), part(case, exact, si)) for si in case.models.pyramid]
    return list(accumulate(errors, max))


def _guided(case: RecordedCase, trace: Trace, si: int) -> Tensor:
    assert trace.intermediates is not None
    return trace.intermediates.guided_BLV[:, case.models.pyramid.span(si)]


def _f_hat(case: RecordedCase, trace: Trace, si: int) -> Tensor:
    assert trace.intermediates is not None
    return trace.intermediates.f_hat_SBCPP[si]
