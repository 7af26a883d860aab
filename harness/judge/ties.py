"""The mathematics of ties: what rounding can do to a categorical draw, and what it cannot.

Promise: a differing token is a tie only if the float64 reference itself, on the same prefix, cannot tell the two tokens
apart within the error budget. Pure functions; the budget is an argument, never derived from what is judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.judge.verdict import Divergence
from harness.protocol.request import Request
from harness.rounding.budget import Allowance

# Besides the logits, softmax, division and cumulative sum round: a few units of float32 on a log score.
RACE_ROUNDING = 8 * 2.0**-23
# A single tie may have any margin that the largest error allows. Many must be usual ones: in bfloat16 the largest error
# is that large that it would excuse most draws of a wrong decoder that shows no logits. Digits, bfloat16: 75 ties of a
# right decoder had a root mean square margin of 0.14 × logits_rms, those of eight planted bugs 3 to 5.5 times it.
MANY_TIES = 10


def race_margin(exact_V: Tensor, E_V: Tensor, token: int, request: Request, allowed: Allowance) -> float:
    """Return by how much `token` loses the race of the float64 logits; <= 0 if it can win within the budget's filter.

    The filter is a threshold, so near it rounding decides who takes part: `token` only has to beat the tokens that take
    part for certain. A token that is filtered out for certain loses by infinity.

    Args:
        exact_V: float64 guided logits on the decoder's own prefix, before the filter.
        E_V: the exponentials of this draw.
        token: the decoder's.
        request: its filters.
        allowed: how far rounding may move a logit of this scale.
    """
    possible_V, certain_V = _survivors(exact_V.double(), request, allowed.logits)
    if not bool(possible_V[token]):
        return float("inf")
    score_V = exact_V.double() - E_V.double().log()
    rivals_V = certain_V.clone()
    rivals_V[token] = False
    if not bool(rivals_V.any()):
        return 0.0
    return float(score_V[rivals_V].max() - score_V[token])


def margin_bound(allowed: Allowance) -> float:
    """Return the largest margin that rounding explains: both tokens' logits move by all that is allowed."""
    return 2 * allowed.logits + RACE_ROUNDING


def unusual_ties(ties: Sequence[Divergence], allowed_S: Sequence[Allowance]) -> list[Divergence]:
    """Return the ties that are no ties where all of them together are beyond rounding; else none.

    A margin is at most what its two logits moved by, and `logits_rms` is two times or more what one moves by as a rule.

    Args:
        ties: of one decode, each with its scale.
        allowed_S: how far rounding may move a logit, by scale.
    """
    shares = [max(0.0, tie.margin) / (allowed_S[tie.scale].logits_rms + RACE_ROUNDING) for tie in ties]
    if len(ties) < MANY_TIES or math.hypot(*shares) <= math.sqrt(len(ties)):
        return []
    return [tie for tie, share in zip(ties, shares, strict=True) if share > 1]


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
        high_V = ((above_VV <= 2 * error).to(most.dtype) @ most) / least.sum()  # the diagonal counts the token itself
        low_V = ((above_VV < -2 * error).to(least.dtype) @ least) / most.sum()
        slack = 4 * error + len(logits_V) * 2.0**-23  # of a float32 cumulative sum of softmax values
        possible_V &= (high_V + slack > 1 - request.top_p) | (above_VV <= 2 * error).all(1)
        certain_V &= (low_V - slack > 1 - request.top_p) | (above_VV < -2 * error).all(1)
    return possible_V, certain_V
