"""IDENTICAL, TIE, CONSISTENT, DEFECT or INCONCLUSIVE.

Promise: a differing token is a tie only if the float64 reference itself, on the same prefix, cannot tell the two tokens
apart within the error budget, and both sides' logits lie within that budget. Everything else is a defect.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from harness.budget import Budget
from harness.request import Request

# Besides the logits, softmax, division and cumulative sum round: a few units of float32 on a log score.
RACE_ROUNDING = 8 * 2.0**-23
# A single tie may have any margin that the largest error allows. Many must be usual ones: in bfloat16 the largest error
# is that large that it would excuse most draws of a wrong decoder that shows no logits. Digits, bfloat16: 75 ties of a
# right decoder had a root mean square margin of 0.14 × logits_rms, those of eight planted bugs 3 to 5.5 times it.
MANY_TIES = 10


class Verdict(StrEnum):
    """The answers; the exit status of the command line follows from them.

    CONSISTENT is all that one run can say of a decoder that does not claim the tokens themselves: its structure is
    whole, and its tensors are the target's on its own tokens.
    """

    IDENTICAL = "IDENTICAL"
    TIE = "TIE"
    CONSISTENT = "CONSISTENT"
    DEFECT = "DEFECT"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_status(self) -> int:
        """0 the claim holds, 1 a defect, 3 inconclusive (design §7)."""
        return {"IDENTICAL": 0, "TIE": 0, "CONSISTENT": 0, "DEFECT": 1, "INCONCLUSIVE": 3}[self.value]


@dataclass(frozen=True)
class Divergence:
    """Where a decoder first goes wrong, or a token that is not the reference's.

    Args:
        component: the part it points to, e.g. ``positions``.
        detail: one clause on why.
        seed: of the request.
        image: index in the batch.
        label: of the image.
        scale: scale index; -1 where no scale is concerned.
        position: absolute position, 0..L-1; -1 where none is concerned.
        actual: the decoder's token; -1 where none is concerned.
        expected: the reference's token on the same prefix.
        margin: by how much the decoder's token loses the float64 race, log scale; NaN where not raced.
        bound: largest margin that rounding explains.
        delta_logits: largest |Δ guided logits| against the reference at that position; NaN where not exposed.
        delta_f_hat: largest |Δ f_hat| after that scale; NaN where not exposed.
    """

    component: str
    detail: str
    seed: int
    image: int = -1
    label: int = -1
    scale: int = -1
    position: int = -1
    actual: int = -1
    expected: int = -1
    margin: float = float("nan")
    bound: float = float("nan")
    delta_logits: float = float("nan")
    delta_f_hat: float = float("nan")

    def __str__(self) -> str:
        where = f"seed {self.seed}"
        for word, value in (("image", self.image), ("label", self.label), ("scale", self.scale)):
            where += f", {word} {value}" if value >= 0 else ""
        if self.position >= 0:
            where += f", position {self.position}: token {self.actual}, expected {self.expected}"
        if not math.isnan(self.margin):
            where += f", margin {self.margin:.3g} (bound {self.bound:.3g})"
        for word, delta in (("|Δlogits|", self.delta_logits), ("|Δf_hat|", self.delta_f_hat)):
            where += "" if math.isnan(delta) else f", {word} {delta:.3g}"
        return f"component {self.component} ({self.detail}) at {where}"

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON, where NaN and an infinite margin become null."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Distance:
    """How far an image is from the sequential one of the same seed; measured, never judged.

    Args:
        tokens: share of tokens that differ.
        f_hat: mean absolute difference of the final f_hat.
        pixels: mean absolute difference of the images, in [0, 1].
    """

    tokens: float
    f_hat: float
    pixels: float


@dataclass
class Judgement:
    """The judgement on one decode.

    Args:
        images: number of images.
        draws: tokens compared.
        identical: tokens equal to the reference's draw on the same prefix.
        ties: certified ones.
        defects: everything else, in causal order; the first one is where to look.
        inconclusive: reasons why the run proves nothing; empty in a good run.
        claims_tokens: True under contract A; otherwise `identical` is a measurement, and no token a defect.
        distances: of every image, where tokens are not claimed.
    """

    images: int
    draws: int = 0
    identical: int = 0
    ties: list[Divergence] = field(default_factory=list)
    defects: list[Divergence] = field(default_factory=list)
    inconclusive: list[str] = field(default_factory=list)
    claims_tokens: bool = True
    distances: list[Distance] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """DEFECT over INCONCLUSIVE over TIE over IDENTICAL; nothing compared is INCONCLUSIVE."""
        if self.defects:
            return Verdict.DEFECT
        if self.inconclusive or self.draws == 0:
            return Verdict.INCONCLUSIVE
        if not self.claims_tokens:
            return Verdict.CONSISTENT
        return Verdict.TIE if self.ties else Verdict.IDENTICAL


def race_margin(exact_V: Tensor, E_V: Tensor, token: int, request: Request, budget: Budget) -> float:
    """Return by how much `token` loses the race of the float64 logits; <= 0 if it can win within the budget's filter.

    The filter is a threshold, so near it rounding decides who takes part: `token` only has to beat the tokens that take
    part for certain. A token that is filtered out for certain loses by infinity.

    Args:
        exact_V: float64 guided logits on the decoder's own prefix, before the filter.
        E_V: the exponentials of this draw.
        token: the decoder's.
        request: its filters.
        budget: how far rounding may move a logit.
    """
    possible_V, certain_V = _survivors(exact_V.double(), request, budget.logits)
    if not bool(possible_V[token]):
        return float("inf")
    score_V = exact_V.double() - E_V.double().log()
    rivals_V = certain_V.clone()
    rivals_V[token] = False
    if not bool(rivals_V.any()):
        return 0.0
    return float(score_V[rivals_V].max() - score_V[token])


def margin_bound(budget: Budget) -> float:
    """Return the largest margin that rounding explains: both tokens' logits move by one budget each."""
    return 2 * budget.logits + RACE_ROUNDING


def unusual_ties(ties: list[Divergence], budget: Budget) -> list[Divergence]:
    """Return the ties that are no ties where all of them together are beyond rounding; else none.

    A margin is at most what its two logits moved by, and `logits_rms` is two times or more what one moves by as a rule.
    """
    usual = budget.logits_rms + RACE_ROUNDING
    margins = [max(0.0, tie.margin) for tie in ties]
    if len(ties) < MANY_TIES or math.hypot(*margins) <= usual * math.sqrt(len(ties)):
        return []
    return [tie for tie in ties if tie.margin > usual]


def _survivors(logits_V: Tensor, request: Request, error: float) -> tuple[Tensor, Tensor]:
    """Tokens that may survive the filter, and those that must, when every logit may move by `error`."""
    possible_V = torch.ones_like(logits_V, dtype=torch.bool)
    certain_V = possible_V.clone()
    above_VV = logits_V[None, :] - logits_V[:, None]  # [v, u]: logit of u over logit of v
    above_VV.fill_diagonal_(-torch.inf)  # a token is no rival of itself
    if request.top_k > 0:
        possible_V = (above_VV > 2 * error).sum(1) < request.top_k
        certain_V = (above_VV > -2 * error).sum(1) < request.top_k
    if request.top_p > 0:
        # A token is dropped iff the share of the tokens up to it, itself included, is <= 1-p. Bounds on that share:
        weight_V = (logits_V - logits_V.max()).exp()
        most, least = weight_V * possible_V, weight_V * certain_V
        high_V = (weight_V + (above_VV <= 2 * error).to(most.dtype) @ most) / least.sum()
        low_V = (weight_V + (above_VV < -2 * error).to(least.dtype) @ least) / most.sum()
        slack = 4 * error + len(logits_V) * 2.0**-23  # of a float32 cumulative sum of softmax values
        possible_V &= (high_V + slack > 1 - request.top_p) | (above_VV <= 2 * error).all(1)
        certain_V &= (low_V - slack > 1 - request.top_p) | (above_VV < -2 * error).all(1)
    return possible_V, certain_V
