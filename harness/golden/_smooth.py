"""Judge a `more_smooth` case position by position, by how far rounding can lead such a run off its path.

f_hat is no function of the tokens here, so the case runs free, and rounding grows from scale to scale: it moves logits
by 1e-5, and a soft choice divides by τ, which is tiny. Where two codes are all but equal the choice moves a hundred
times as far, f_hat with it, and so the logits of all later scales. How far (`spread`) is measured on the plain sampler
alone: float32 runs, their logits nudged by what rounding does, against float64. Where the best codes of a choice lie
within the budget so found, in units of τ, the choice is a soft tie: more runs take it both ways. What rounding can move
little is judged by how little that is; what it can move far, after a soft tie, is not judged, and counted so. Where
f_hat of every scale is recorded, every scale is judged from the recorded f_hat before it besides.

Promise: no bound is wider than `LIMITS`, and what is not judged is decided by the plain sampler alone: the measurement
sees no recording. Scores and τ are the specification's, written here again, whatever the sampler under judgement takes;
a choice whose best codes rounding cannot bring together is never a tie. Everything but the nudge and the given inputs
is the network's own.

Source: spec §7, `more_smooth`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from harness.golden._cases import LIMITS, CaseResult, Ground, RecordedCase, allowances, smooth_rounding
from harness.judge import largest_difference
from harness.models import Around, Condition, ModelPair, Network
from harness.protocol import SMOOTH, Request, ScalePyramid, Trace
from harness.reference import filter_logits, next_input

Nudge = Callable[[Tensor], Tensor]  # logits_RlV of a whole scale -> the same, moved


@dataclass(frozen=True, eq=False)
class Nudged(Around):
    """One network; `nudge` moves its logits, `raw` replaces raw inputs raw_BlC, by number of tokens."""

    nudge: Nudge
    raw: Mapping[int, Tensor]

    def embed(self, raw_BnC: Tensor) -> Tensor:
        return self.network.embed(self.raw.get(raw_BnC.shape[1], raw_BnC))

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        return self.nudge(self.network.logits(h_RnD, condition))


def as_they_are(logits_RlV: Tensor) -> Tensor:
    return logits_RlV


def nudged(models: ModelPair, nudge: Nudge = as_they_are, raw: Mapping[int, Tensor] | None = None) -> ModelPair:
    draft, target = (cast(Network, Nudged(network, nudge, raw or {})) for network in (models.draft, models.target))
    return replace(models, draft=draft, target=target)


def raw_inputs(f_hat_SBCPP: Tensor, pyramid: ScalePyramid) -> dict[int, Tensor]:
    """Return the raw input of every scale but the first, from f_hat after the one before: by number of tokens."""
    return {pyramid.tokens(si): next_input(f_hat_SBCPP[si - 1], si, pyramid) for si in pyramid if si > 0}


# A choice that rounding cannot move by a quarter of τ answers in proportion: no tie, and nudged runs show all of it.
LEAST = 0.25
# A code two τ below the best holds an eighth of the mixture at most, and nudged runs show how far that moves.
BELOW = 2.0
TOSSES = 2  # pairs of moves that a filter is tried with


@dataclass(frozen=True)
class Choices:
    score_BLV: Tensor  # logits after guidance times (1 + si/(S-1)), plus G, in units of τ; filtered codes too
    kept_BLV: Tensor  # codes that pass the filter
    best_BL2: Tensor  # the two best of those
    factor_L: Tensor  # units of τ that a unit of logits is, by position


def temperature(ramp: float) -> float:
    return max(0.27 * (1 - 0.95 * ramp), 0.005)


def choices(case: RecordedCase, guided_BLV: Tensor) -> Choices:
    pyramid, request, noise = case.models.pyramid, case.request, case.models.noise(case.request)
    noise.labels(case.models.target.config.classes)  # drawn ones come first
    scores, factors = [], []
    for si in pyramid:
        ramp, G_BlV = pyramid.ramp(si), -noise.exponential(si, SMOOTH, "golden").double().log()
        scores.append((guided_BLV[:, pyramid.span(si)] * (1 + ramp) + G_BlV) / temperature(ramp))
        factors += [(1 + ramp) / temperature(ramp)] * pyramid.tokens(si)
    score_BLV = torch.cat(scores, 1)
    kept_BLV = filter_logits(guided_BLV, request.top_k, request.top_p).isfinite()
    best_BL2 = score_BLV.masked_fill(~kept_BLV, -torch.inf).topk(min(2, case.models.vae.config.V)).indices
    return Choices(score_BLV, kept_BLV, best_BL2, score_BLV.new_tensor(factors))


def soft_ties(case: RecordedCase, guided_BLV: Tensor, chosen: Choices, reach_BLV: Tensor) -> Tensor:
    """Return ties_BL: choices, at float64 logits, whose best codes lie within the budget, in units of τ.

    The case's filters decide who takes part, and rounding near a threshold; `reach_BLV` is how far it may move a code
    against the best one, in units of logits.
    """
    reach_tau_BLV = reach_BLV * chosen.factor_L[:, None]
    best_BL1 = chosen.best_BL2[..., :1]
    below_BLV = chosen.score_BLV.gather(-1, best_BL1) - chosen.score_BLV
    rival_BLV = (below_BLV <= reach_tau_BLV + BELOW).scatter(-1, best_BL1, False)
    turns_BLV = rival_BLV & chosen.kept_BLV & (reach_tau_BLV > LEAST)
    unsure_BLV = _unsure(guided_BLV, reach_BLV, case.request, chosen.kept_BLV)
    leaves_BL1 = unsure_BLV.gather(-1, best_BL1)  # the best code itself may be filtered out
    return (turns_BLV | (rival_BLV & unsure_BLV) | leaves_BL1).any(-1)


def _unsure(guided_BLV: Tensor, reach_BLV: Tensor, request: Request, kept_BLV: Tensor) -> Tensor:
    """Return at which codes a move of the logits may decide whether they pass the filter."""
    unsure_BLV = torch.zeros_like(kept_BLV)
    if not request.top_k and not request.top_p:
        return unsure_BLV
    for toss in range(TOSSES):
        way_BLV = _signs(guided_BLV, toss) * reach_BLV
        for moved_BLV in (guided_BLV + way_BLV, guided_BLV - way_BLV):
            unsure_BLV |= filter_logits(moved_BLV, request.top_k, request.top_p).isfinite() != kept_BLV
    return unsure_BLV


def tossed(chosen: Choices, seed: int) -> Tensor:
    """Return ±1 for every code, by which ties are taken one way: +1 for the second best, 0 for the best."""
    sign_BLV = _signs(chosen.score_BLV, seed)
    two_BL2 = sign_BLV.new_tensor((0.0, 1.0)[: chosen.best_BL2.shape[-1]]).expand(chosen.best_BL2.shape)
    return sign_BLV.scatter(-1, chosen.best_BL2, two_BL2)


def _signs(like_BLV: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(2, like_BLV.shape, generator=generator) * 2 - 1).type_as(like_BLV)


# Runs that are nudged by rounding alone, and pairs of runs that take every soft tie the one way and the other.
RUNS, PAIRS = 8, 2
# How much farther than the farthest nudged run a right sampler may be. Twelve digits cases recorded with AVX2 and with
# SSE alone were at most 0.42 times as far apart as this allows, at any position of f_hat (scripts/soft_campaign.py).
FACTOR = 4.0


@dataclass(frozen=True)
class Spread:
    """How far from `exact` rounding may lead."""

    exact: Trace  # the float64 run
    rms_BL: Tensor  # the guided logits of a position, root mean square over codes
    peak_BL: Tensor  # any one of them
    map_SBPP: Tensor  # f_hat after every scale, any channel; with given inputs, what every scale adds to it
    ties_BL: Tensor  # the soft ties


@torch.inference_mode()
def spread(case: RecordedCase, error: float, raw: Mapping[int, Tensor] | None = None) -> Spread:
    """Measure how far rounding can lead a case with `more_smooth`. Draws: from generators of its own.

    `error` is the root mean square of what rounding does to a logit before guidance, `raw` are inputs that the run is
    given (`raw_inputs`); None = its own.
    """

    def run(nudge: Nudge) -> Trace:
        return replace(case, models=nudged(case.models, nudge, raw)).run()

    exact = replace(case, models=nudged(case.models.wide(), as_they_are, raw)).run()
    chosen, steps = choices(case, exact.shown.guided_BLV), raw is not None
    calm, pyramid = _Farthest(exact, chosen, steps), case.models.pyramid
    for k in range(RUNS):
        calm.add(run(rounding(error, k)))
    reach_BLV = FACTOR * calm.apart_BLV
    ties_BL = soft_ties(case, exact.shown.guided_BLV, chosen, reach_BLV)
    both = _Farthest(exact, chosen, steps)
    for k in range(2 * PAIRS if bool(ties_BL.any()) else 0):
        shift_BLV = (-1) ** k * tossed(chosen, k // 2) * reach_BLV * ties_BL[..., None]
        shifts = {pyramid.tokens(si): shift_BLV[:, pyramid.span(si)] for si in pyramid}
        both.add(run(rounding(error, k, shifts)), shift_BLV)
    pairs = ((calm.rms_BL, both.rms_BL), (calm.peak_BL, both.peak_BL), (calm.map_SBPP, both.map_SBPP))
    rms_BL, peak_BL, map_SBPP = (torch.maximum(FACTOR * one, other) for one, other in pairs)
    return Spread(exact, rms_BL, peak_BL, map_SBPP, ties_BL)


class _Farthest:
    """The farthest of some runs from the exact one, position by position."""

    def __init__(self, exact: Trace, chosen: Choices, steps: bool) -> None:
        self.exact_BLV, self.best_BL1, self.steps = exact.shown.guided_BLV, chosen.best_BL2[..., :1], steps
        self.exact_SBCPP = maps(exact, steps)
        nowhere = self.exact_BLV.new_zeros(())  # of no run yet; any shape
        self.apart_BLV = self.rms_BL = self.peak_BL = self.map_SBPP = nowhere  # apart: a code against the best one

    def add(self, run: Trace, shift_BLV: Tensor | float = 0.0) -> None:
        """Take one more run into account; how far it was shifted itself does not count."""
        moved_BLV = run.shown.guided_BLV.double() - self.exact_BLV - shift_BLV
        moved_SBCPP = maps(run, self.steps).double() - self.exact_SBCPP
        apart_BLV = moved_BLV - moved_BLV.gather(-1, self.best_BL1)
        self.apart_BLV = torch.maximum(self.apart_BLV, apart_BLV.abs())
        self.rms_BL = torch.maximum(self.rms_BL, moved_BLV.square().mean(-1).sqrt())
        self.peak_BL = torch.maximum(self.peak_BL, moved_BLV.abs().amax(-1))
        self.map_SBPP = torch.maximum(self.map_SBPP, moved_SBCPP.abs().amax(2))


def rounding(error: float, seed: int, shifts: Mapping[int, Tensor] | None = None) -> Nudge:
    """Return a nudge of rms `error`, as of rounding; `shifts` (B,l,V) move guided logits, by number of tokens."""
    generator = torch.Generator().manual_seed(seed)

    def moved(logits_RlV: Tensor) -> Tensor:
        noise_RlV = torch.randn(logits_RlV.shape, generator=generator)
        moved_RlV = logits_RlV.add(noise_RlV.type_as(logits_RlV), alpha=error)
        if shifts is None:
            return moved_RlV
        shift_BlV = shifts[logits_RlV.shape[1]]  # of both guidance rows, so that the guided ones move by it
        return moved_RlV + torch.cat((shift_BlV, shift_BlV)).type_as(logits_RlV)

    return moved


def maps(trace: Trace, steps: bool) -> Tensor:
    """Return f_hat_SBCPP of a plain sampler's run, or what every scale adds to it."""
    return added(trace.shown.f_hat_SBCPP) if steps else trace.shown.f_hat_SBCPP


def added(f_hat_SBCPP: Tensor) -> Tensor:
    return torch.cat((f_hat_SBCPP[:1], f_hat_SBCPP[1:] - f_hat_SBCPP[:-1]))


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
    ground.judge_tokens(case, tokens_BL, led.run, result)
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
