"""Judge a `more_smooth` case position by position.

f_hat is no function of the tokens here, so the case runs free, and rounding grows from scale to scale (`spread`). What
rounding can move little is judged by how little that is; what it can move far, after a soft tie, is not judged, and
counted so. Where f_hat of every scale is recorded, every scale is judged from the recorded f_hat before it besides.

Promise: no bound is wider than the limits of `allowance`, and what is not judged is decided by the plain sampler alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from harness.golden._allowance import LIMITS, allowances, smooth_rounding
from harness.golden._case_results import CaseResult, Ground, judge_recorded_tokens
from harness.golden._cases import RecordedCase
from harness.golden._spread import Spread, added, as_they_are, maps, nudged, raw_inputs, spread
from harness.judge import largest_difference
from harness.protocol import Trace


@dataclass(frozen=True)
class _Followed:
    """A run beside the recording, and how far rounding may lead it."""

    run: Trace  # free, or from the recorded f_hat of every scale
    spread: Spread  # of that run
    floor: float  # least that f_hat is allowed, one rounding or so

    @property
    def judged_BL(self) -> Tensor:
        """Positions whose logits rounding cannot move far."""
        return (self.spread.rms_BL <= LIMITS["smooth margin"] / 2) & (self.spread.peak_BL <= LIMITS["smooth logits"])

    @property
    def allowed_SB1PP(self) -> Tensor:
        """How far the map of every scale may be off; infinite where that is not judged."""
        allowed_SBPP = self.spread.map_SBPP + self.floor
        return allowed_SBPP.masked_fill(allowed_SBPP > LIMITS["smooth f_hat"], torch.inf)[:, :, None]


def judge_smooth(case: RecordedCase, recorded: Mapping[str, Tensor], free: Trace, result: CaseResult) -> None:
    """Judge tokens, logits, f_hat and image of a case with `more_smooth`. Effects: on `result`."""
    error, floor = smooth_rounding(case, free), allowances(case, free).f_hat
    own = _Followed(free, spread(case, error), floor)
    led = own
    if case.f_hats:
        f_hat_SBCPP = torch.stack([recorded[f"f_hat/{si}"] for si in case.models.pyramid])
        raw = raw_inputs(f_hat_SBCPP, case.models.pyramid)
        run = replace(case, models=nudged(case.models, as_they_are, raw)).run()
        led = _Followed(run, spread(case, error, raw), floor)
    result.soft_ties = int(led.spread.ties_BL.sum())
    _judge_positions(case, recorded, led, result)
    judged_BPP = _judge_maps(case, recorded, own, led, result)
    result.map_positions, result.map_not_judged = judged_BPP.numel(), int((~judged_BPP).sum())
    result.delta_image = largest_difference(case.models.vae.decode(recorded["f_hat"]), recorded["image"])
    if not result.delta_image <= LIMITS["image"]:
        rule = f"off by {result.delta_image:.3g}, allowed {LIMITS['image']:.3g}"
        result.defect("image", f"image is not that of f_hat: {rule}")


def _judge_positions(case: RecordedCase, recorded: Mapping[str, Tensor], led: _Followed, result: CaseResult) -> None:
    """Judge tokens, and logits where they are recorded. Effects: on `result`."""
    tokens_BL, judged_BL = recorded["tokens"].long(), led.judged_BL
    result.draws, result.not_judged = tokens_BL.numel(), int((~judged_BL).sum())
    result.identical = int(((led.run.tokens_BL == tokens_BL) & judged_BL).sum())
    ground = Ground(led.spread.exact, led.spread.rms_BL, led.spread.peak_BL, judged_BL)
    judge_recorded_tokens(case, tokens_BL, led.run, ground, result)
    most = LIMITS["smooth ties"]
    if len(result.ties) > max(1, most * result.draws):
        result.defect("token", f"{len(result.ties)} tokens differ, more than {most:.1%} of the draws")
    if case.logits == "none":
        return
    allowed_BL1 = led.spread.peak_BL.masked_fill(~judged_BL, torch.inf)[..., None]
    for si in case.models.pyramid:
        at, expected = case.logits_at(si), recorded[f"logits/{si}"]
        delta = result.compare(f"logits/{si}", led.run.shown.guided_BLV[:, at], expected, allowed_BL1[:, at], si)
        result.delta_logits = float(np.fmax(result.delta_logits, delta))  # NaN: not compared


def _judge_maps(
    case: RecordedCase, recorded: Mapping[str, Tensor], own: _Followed, led: _Followed, result: CaseResult
) -> Tensor:
    """Judge f_hat, after every scale where that is recorded; return judged_BPP. Effects: on `result`."""
    last = case.models.pyramid.S - 1
    whole = own.run.f_hat_BCPP, recorded["f_hat"], own.allowed_SB1PP[-1]
    result.delta_f_hat = result.compare("f_hat", *whole, last)
    judged_BPP = own.allowed_SB1PP[-1, :, 0].isfinite()
    if not case.f_hats:
        return judged_BPP
    if not torch.equal(recorded[f"f_hat/{last}"], recorded["f_hat"]):
        result.defect("f_hat", f"f_hat is not f_hat/{last}", last)
    f_hat_SBCPP = torch.stack([recorded[f"f_hat/{si}"] for si in case.models.pyramid])
    free = maps(own.run, steps=False), f_hat_SBCPP, own.allowed_SB1PP
    by_step = maps(led.run, steps=True), added(f_hat_SBCPP), led.allowed_SB1PP
    for si in case.models.pyramid:
        for actual, expected, allowed in (free, by_step):
            delta = result.compare(f"f_hat/{si}", actual[si], expected[si], allowed[si], si)
            result.delta_f_hat = float(np.fmax(result.delta_f_hat, delta))
    return judged_BPP | led.allowed_SB1PP[:, :, 0].isfinite().all(0)
