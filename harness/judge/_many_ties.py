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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from harness.judge._evidence import Evidence
from harness.judge._race import RACE_ROUNDING
from harness.judge._verdict import Divergence, Judgement
from harness.protocol import Request
from harness.protocol.noise import TOKEN
from harness.reference import filter_logits
from harness.rounding import Allowance

Allowed = Callable[[Request], list[Allowance]]

MANY = "one of many ties whose margins together are beyond rounding"
ALARM = 1e-6
THETAS = (0.25, 0.5, 0.75)
# An error beyond the largest that was measured (some 1e8 numbers in a calibration) has about this chance.
BEYOND = 1e-8
# A rival whose chance is below this is left out of a cost, to which it would add less than NOTHING**0.25 = 1e-15. All
# of them in a million draws of 4096 tokens would add 4e-6: such a run is accused with probability 1.000004 ALARM.
NOTHING = 1e-60
FEW = 16  # a draw with so many tokens within reach is weighed by its best ones alone, which is cheaper
NUMBERS = 2**20  # of rivals that are weighed at a time
# A single tie may have any margin that the largest error allows. Many must be usual ones: in bfloat16 the largest error
# is that large that it would excuse most draws of a wrong decoder that shows no logits. Digits, bfloat16: 75 ties of a
# right decoder had a root mean square margin of 0.14 × logits_rms, those of eight planted bugs 3 to 5.5 times it.
MANY_TIES = 10


@dataclass(frozen=True)
class Tail:
    """How often rounding moves a logit by more than x: at most 2·exp(−½·(x/scale)^power).

    A normal law has power 2. In bfloat16 the largest error is far from the usual one: the power is then what joins the
    two, `scale` as the usual error and `BEYOND` as the chance of the largest.
    """

    scale: float
    power: float

    @classmethod
    def of(cls, allowance: Allowance) -> Self:
        """Return the law that a scale's allowance speaks of."""
        ratio = allowance.logits / allowance.logits_rms
        power = math.log(-2 * math.log(BEYOND / 2)) / math.log(ratio) if ratio > 1 else 2.0
        return cls(allowance.logits_rms, min(2.0, max(1.0, power)))

    @property
    def reach(self) -> float:
        """The gap beyond which a chance is below `NOTHING`."""
        return float(2 * self.scale * (2 * math.log(4 / NOTHING)) ** (1 / self.power))

    def chance(self, gap: Tensor) -> Tensor:
        """Return a bound on the chance that one of two scores moved by half the gap between them, 0 to 1/2."""
        return (4 * torch.exp(-0.5 * (gap.clamp_min(0) / (2 * self.scale)) ** self.power)).clamp(1e-300, 0.5)


def costs_N3(scores_NV: Tensor, tail: Tail) -> Tensor:
    """Return what N draws of one scale cost for having been free to flip, for every θ; float64.

    Every rival within reach is summed, however many there are: in bfloat16 that can be most of a codebook. What is
    farther costs nothing (`NOTHING` says how much that leaves out). Scores are logits − ln E, dropped tokens at −inf.
    """
    N, V = scores_NV.shape
    costs_N3 = torch.zeros(N, len(THETAS), dtype=torch.float64, device=scores_NV.device)
    near_N = (scores_NV > scores_NV.amax(1, keepdim=True) - tail.reach).sum(1)
    few = torch.nonzero((near_N > 1) & (near_N <= FEW)).flatten()
    best_nk = scores_NV[few].topk(min(FEW, V), dim=1).values.double()
    costs_N3[few] = _costs_n3(best_nk[:, :1] - best_nk[:, 1:], tail)
    for many in torch.nonzero(near_N > FEW).flatten().split(max(1, NUMBERS // V)):
        best_n1, winner_n1 = scores_NV[many].double().max(1, keepdim=True)
        gap_nV = best_n1 - scores_NV[many].double()
        costs_N3[many] = _costs_n3(gap_nV.scatter(1, winner_n1, torch.inf), tail)  # a winner is no rival of itself
    return costs_N3


def _costs_n3(gap_nk: Tensor, tail: Tail) -> Tensor:
    chance_nk = tail.chance(gap_nk)
    return torch.stack([(chance_nk ** (1 - theta) - chance_nk).sum(1) for theta in THETAS], 1)


def surprise_N(margin_N: Tensor, tail: Tail) -> Tensor:
    """Return −ln of the chance of ties with these margins, float64; 0 for a filter tie, of margin 0 or less."""
    return torch.where(margin_N > 0, -tail.chance(margin_N.double()).log(), 0.0)


def log_e(weights_x3: Tensor) -> Tensor:
    """Return the logarithm of the e-value that evidence − cost for every θ makes: the mean over θ, the last axis."""
    highest_x1 = weights_x3.amax(-1, keepdim=True)
    return highest_x1[..., 0] + (weights_x3 - highest_x1).exp().mean(-1).log()


def too_many(weights_x3: Tensor, looks: int = 1) -> Tensor:
    """Tell where evidence − cost, for every θ, passes the `ALARM` of a right decoder, of `looks` e-values in all."""
    return log_e(weights_x3) > math.log(looks / ALARM)


@torch.inference_mode()
def costs_of_draws(evidence: Evidence) -> Tensor:
    """Return costs_SB3, float64 on the CPU: what draws cost for having been free to flip, by the reference."""
    request, pyramid, shown = evidence.request, evidence.models.pyramid, evidence.expected.shown
    noise, costs = evidence.numbers, []
    for si in pyramid:
        scores_BlV = filter_logits(shown.guided_BLV[:, pyramid.draws.span(si)], *request.filter(si))
        if not evidence.greedy:
            scores_BlV = scores_BlV - noise.exponential(si, TOKEN, "judge").log()
        of_scale = costs_N3(scores_BlV.flatten(0, 1), Tail.of(evidence.allowance(si)))
        costs.append(of_scale.unflatten(0, (request.B, -1)).sum(1))  # (B·l, 3) -> (B, 3)
    return torch.stack(costs).cpu()


def weigh_decode(evidence: Evidence, judgement: Judgement, costs_SB3: Tensor, row_of: Sequence[int]) -> None:
    """Reject the ties of images that have too many or too wide ones. Effects: on `judgement`, for `weigh_run` too.

    `costs_SB3` are those of `costs_of_draws`, `row_of` the place in the batch of the image of every tie.
    """
    S, ties = len(costs_SB3), judgement.ties
    allowed_S = [evidence.allowance(si) for si in range(S)]
    scale_n, row_n = (torch.tensor(numbers, dtype=torch.int64) for numbers in ([tie.scale for tie in ties], row_of))
    margin_n = torch.tensor([tie.margin for tie in ties], dtype=torch.float64)
    surprise_SB = torch.zeros(costs_SB3.shape[:2], dtype=torch.float64)
    for si in range(S):
        at = scale_n == si
        surprise_SB[si].index_add_(0, row_n[at], surprise_N(margin_n[at], Tail.of(allowed_S[si])))
    weights_SB3 = surprise_SB[..., None] * surprise_SB.new_tensor(THETAS) - costs_SB3
    judgement.surprise = weights_SB3.sum(1).tolist()
    beyond = (too_many(weights_SB3, S)[scale_n, row_n] & (margin_n > 0)).tolist()
    rejected = [tie for tie, is_beyond in zip(ties, beyond, strict=True) if is_beyond]
    for row in set(row_of):
        rejected += unusual_ties([tie for tie, of_row in zip(ties, row_of, strict=True) if of_row == row], allowed_S)
    reject(judgement, rejected)


def weigh_run(judgements: Sequence[tuple[Request, Judgement]], allowed: Allowed, looks: int) -> None:
    """Reject the ties of a whole run that are too many or too wide: what each request may excuse, all may not.

    The judgements are of one setting, and `looks` settings are looked at; those of another contract than A weigh
    nothing. Effects: on the judgements.
    """
    weighed = [(request, judgement) for request, judgement in judgements if judgement.surprise]
    if not any(judgement.ties for _, judgement in weighed):
        return
    weights_S3 = torch.tensor([judgement.surprise for _, judgement in weighed], dtype=torch.float64).sum(0)
    looks *= len(weights_S3) + 1  # every scale, and the run
    for si in torch.nonzero(too_many(weights_S3, looks)).flatten().tolist():
        for _, judgement in weighed:
            reject(judgement, [tie for tie in judgement.ties if tie.scale == si and tie.margin > 0])
    guided = {request.guidance: request for request, _ in weighed}
    for guidance in sorted(guided, key=lambda each: each if isinstance(each, float | int) else 0.0):
        alike = [judgement for request, judgement in weighed if request.guidance == guidance]
        allowed_S = allowed(guided[guidance])
        unusual = {id(tie) for tie in unusual_ties([tie for j in alike for tie in j.ties], allowed_S)}
        for judgement in alike:
            reject(judgement, [tie for tie in judgement.ties if id(tie) in unusual])
    left = [judgement for _, judgement in weighed if judgement.ties]
    if left and bool(too_many(weights_S3.sum(0), looks)):
        count = sum(len(judgement.ties) for judgement in left)
        reject(left[-1], left[-1].ties[-1:], f"the {count} ties of the run together are beyond rounding")


def unusual_ties(ties: Sequence[Divergence], allowed_S: Sequence[Allowance]) -> list[Divergence]:
    """Return the ties, of one image or one run, that are none where all of them together are beyond rounding.

    A margin is at most what its two logits moved by, and `logits_rms` is two times or more what one moves by as a rule.
    """
    shares = [max(0.0, tie.margin) / (allowed_S[tie.scale].logits_rms + RACE_ROUNDING) for tie in ties]
    if len(ties) < MANY_TIES or math.hypot(*shares) <= math.sqrt(len(ties)):
        return []
    return [tie for tie, share in zip(ties, shares, strict=True) if share > 1]


def reject(judgement: Judgement, ties: Sequence[Divergence], detail: str = MANY) -> None:
    """Call ties defects. Effects: on `judgement`, which counts them as wrong tokens."""
    rejected = {id(tie): replace(tie, component="unknown", detail=detail) for tie in ties}
    judgement.ties = [tie for tie in judgement.ties if id(tie) not in rejected]
    judgement.defects += rejected.values()
    judgement.wrong_tokens += len(rejected)
