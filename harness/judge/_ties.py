"""Ties: what rounding can do to a categorical draw, one by one, and whether all are as many and close as it makes them.

Promise: a differing token is a tie only if the more precise reference itself, on the same prefix, cannot tell the two
tokens apart within the error budget, which is an argument, never derived from what is judged. And a right decoder is
accused of too many ties with probability at most `ALARM` a run, however long the run and wherever in it one looks; what
a single tie may excuse, many may not.

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
from typing import Self, TypeVar

import torch
from torch import Tensor

from harness.judge._evidence import Evidence
from harness.judge._verdict import Divergence, Judgement
from harness.protocol import Request
from harness.protocol.noise import TOKEN, Noise
from harness.protocol.pyramid import ScalePyramid
from harness.reference import filter_logits
from harness.rounding import Allowance

# Besides the logits, softmax, division and cumulative sum round: a few units of float32 on a log score.
RACE_ROUNDING = 8 * 2.0**-23

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class RaceMargins:
    """What precise races say of N tokens; float64."""

    # by how much the token loses; <= 0 if it can win within the budget's filter, infinite if that drops it for certain
    margin_N: Tensor
    bound_N: Tensor  # the largest margin that rounding explains
    error_N: Tensor  # how far the logits that were shown are from the precise ones, at most; 0 where none were

    def is_tie_N(self, allowed: Tensor | float) -> Tensor:
        """Tell where the margin is within its bound, and the logits that were shown within `allowed`."""
        return (self.margin_N <= self.bound_N) & (self.error_N <= allowed)


def margins_of_differing_tokens(
    exact_NV: Tensor, E_NV: Tensor | None, token_N: Tensor, request: Request, allowed: Tensor | float,
    shown: Sequence[Tensor] = (),
) -> RaceMargins:  # fmt: skip
    """Race tokens (int64) by precise guided logits on the decoder's own prefix, before the request's filter.

    The filter is a threshold, so near it rounding decides who takes part: a token only has to beat the tokens that take
    part for certain. `E_NV` are the exponentials of these draws, None where the most likely token is taken: nobody is
    slowed down. `allowed`, one number or one a draw, is how far rounding may move a logit there, `shown` the guided
    logits (N, V) of those that drew, each.
    """
    exact_NV, token_N1 = exact_NV.double(), token_N[:, None]
    allowed_N = torch.as_tensor(allowed, dtype=torch.float64, device=exact_NV.device).expand(len(token_N))
    possible_NV, certain_NV = filter_survivors(exact_NV, request, allowed_N[:, None])
    score_NV = exact_NV if E_NV is None else exact_NV - E_NV.double().log()
    rivals_NV = certain_NV.scatter(1, token_N1, False)
    best_N = score_NV.masked_fill(~rivals_NV, -torch.inf).amax(1)
    margin_N = best_N - score_NV.gather(1, token_N1)[:, 0]
    margin_N = torch.where(rivals_NV.any(1), margin_N, 0.0)
    margin_N = torch.where(possible_NV.gather(1, token_N1)[:, 0], margin_N, torch.inf)
    error_N = torch.zeros_like(margin_N)
    for logits_NV in shown:
        error_N = torch.maximum(error_N, (logits_NV.double() - exact_NV).abs().amax(1))
    return RaceMargins(margin_N, margin_bound(allowed_N), error_N)


def margin_bound(allowed: Number) -> Number:
    """Return the largest margin that rounding explains: both tokens' logits move by all that is allowed."""
    return 2 * allowed + RACE_ROUNDING


def exponentials(noise: Noise, pyramid: ScalePyramid, row_N: Tensor, draw_N: Tensor) -> Tensor:
    """Return E_NV of some draws of a batch; labels that are drawn come before all numbers: ask for them first."""
    scale_N = torch.tensor(pyramid.draws.levels(), device=draw_N.device)[draw_N]
    scales = scale_N.unique().tolist()
    index = [torch.nonzero(scale_N == si).flatten() for si in scales]
    drawn = [
        noise.exponential(si, TOKEN, "judge")[row_N[index_n], draw_N[index_n] - pyramid.draws.begin(si)]
        for si, index_n in zip(scales, index, strict=True)
    ]
    return torch.cat(drawn)[torch.cat(index).argsort()]


def survivors(guided_BlV: Tensor, request: Request, allowed: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return which tokens may pass a filter, and which must, if both sides' logits move by `allowed`, or allowed_N1."""
    flat_NV, V = guided_BlV.flatten(0, -2).double(), guided_BlV.shape[-1]
    most = V
    if 0 < request.top_k < V:  # others are dropped for certain
        kth_N1 = flat_NV.topk(request.top_k).values[:, -1:]
        most = int((flat_NV + 4 * allowed >= kth_N1).sum(1).max())
    values_NK, columns_NK = flat_NV.topk(most) if most < V else (flat_NV, None)
    both = filter_survivors(values_NK, request, 2 * allowed)
    if columns_NK is not None:
        none_NV = torch.zeros_like(flat_NV, dtype=torch.bool)
        both = none_NV.scatter(1, columns_NK, both[0]), none_NV.scatter(1, columns_NK, both[1])
    return both[0].view_as(guided_BlV), both[1].view_as(guided_BlV)


def filter_survivors(logits_NV: Tensor, request: Request, error: Tensor | float) -> tuple[Tensor, Tensor]:
    """Tokens that may survive the filter, and those that must, when every logit may move by `error`.

    Sorted once, so that what the filter asks of a token (how many are above it, how much lies below it) is read off
    two places of a list.
    """
    possible_NV = torch.ones_like(logits_NV, dtype=torch.bool)
    certain_NV = possible_NV
    if request.top_k <= 0 and request.top_p <= 0:
        return possible_NV, certain_NV
    V = logits_NV.shape[1]
    ascending_NV, order_NV = logits_NV.sort(dim=1)
    high_NV, low_NV = logits_NV + 2 * error, logits_NV - 2 * error
    # how many are at most `high`, and how many are below `low`
    up_to_NV = torch.searchsorted(ascending_NV, high_NV, right=True)
    below_NV = torch.searchsorted(ascending_NV, low_NV)
    if request.top_k > 0:
        # a token is no rival of itself, and it is above `low` unless nothing may move
        others_NV = V - torch.searchsorted(ascending_NV, low_NV, right=True) - (logits_NV > low_NV).long()
        possible_NV, certain_NV = V - up_to_NV < request.top_k, others_NV < request.top_k
    if request.top_p > 0:
        # A token is dropped iff the share of the tokens up to it, itself included, is <= 1-p. Bounds on that share:
        # `up_to` counts the token itself, `below` does not: either share holds it exactly once
        weight_NV = (logits_NV - ascending_NV[:, -1:]).exp()
        most_NV, least_NV = weight_NV * possible_NV, weight_NV * certain_NV
        share_high_NV = _sums(most_NV, order_NV, up_to_NV) / least_NV.sum(1, keepdim=True)
        share_low_NV = (least_NV + _sums(least_NV, order_NV, below_NV)) / most_NV.sum(1, keepdim=True)
        slack = 4 * error + V * 2.0**-23  # of a float32 cumulative sum of softmax values
        first_NV, alone_NV = up_to_NV == V, below_NV == V - 1
        possible_NV = possible_NV & ((share_high_NV + slack > 1 - request.top_p) | first_NV)
        certain_NV = certain_NV & ((share_low_NV - slack > 1 - request.top_p) | alone_NV)
    return possible_NV, certain_NV


def _sums(weight_NV: Tensor, order_NV: Tensor, count_NV: Tensor) -> Tensor:
    """Return the sum of the weights of the `count` lowest tokens."""
    sums_NV = weight_NV.gather(1, order_NV).cumsum(1)
    return torch.where(count_NV > 0, sums_NV.gather(1, (count_NV - 1).clamp_min(0)), 0.0)


Allowed = Callable[[Request], list[Allowance]]

MANY = "one of many ties whose margins together are beyond rounding"
ALARM = 1e-6
THETAS = (0.25, 0.5, 0.75)  # quarters: q^(1-θ) are powers of one root
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

    def log_chance(self, gap: Tensor) -> Tensor:
        """Return ln of a bound on the chance that one of two scores moved by half the gap between them, 0 to 1/2."""
        moved = (gap.clamp_min(0) / (2 * self.scale)) ** self.power
        return (math.log(4) - 0.5 * moved).clamp(math.log(1e-300), math.log(0.5))


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
    root_nk = (tail.log_chance(gap_nk) / 4).exp()
    half_nk = root_nk * root_nk
    chance_nk = half_nk * half_nk
    return torch.stack([(each - chance_nk).sum(1) for each in (half_nk * root_nk, half_nk, root_nk)], 1)


def surprise_N(margin_N: Tensor, tail: Tail) -> Tensor:
    """Return −ln of the chance of ties with these margins, float64; 0 for a filter tie, of margin 0 or less."""
    return torch.where(margin_N > 0, -tail.log_chance(margin_N.double()), 0.0)


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
