"""The mathematics of ties: what rounding can do to a categorical draw, and what it cannot.

Promise: a differing token is a tie only if the more precise reference itself, on the same prefix, cannot tell the two
tokens apart within the error budget. Pure functions of many draws at once; the budget is an argument, never derived
from what is judged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.protocol.request import Request
from harness.rounding.budget import Allowance

# Besides the logits, softmax, division and cumulative sum round: a few units of float32 on a log score.
RACE_ROUNDING = 8 * 2.0**-23


def race_margin(exact_V: Tensor, E_V: Tensor, token: int, request: Request, allowed: Allowance) -> float:
    """Return the margin of one draw; arguments as `race_margins`."""
    error_N = torch.tensor([allowed.logits], dtype=torch.float64, device=exact_V.device)
    token_N = torch.tensor([token], device=exact_V.device)
    return float(race_margins(exact_V[None], E_V[None], token_N, request, error_N)[0])


def race_margins(exact_NV: Tensor, E_NV: Tensor, token_N: Tensor, request: Request, error_N: Tensor) -> Tensor:
    """Return by how much `token` loses each race of precise logits; <= 0 if it can win within the budget's filter.

    The filter is a threshold, so near it rounding decides who takes part: `token` only has to beat the tokens that take
    part for certain. A token that is filtered out for certain loses by infinity.

    Args:
        exact_NV: precise guided logits on the decoder's own prefix, before the filter.
        E_NV: the exponentials of these draws.
        token_N: int64, the decoder's.
        request: its filters.
        error_N: float64, how far rounding may move a logit there.

    Returns:
        margin_N, float64.
    """
    exact_NV = exact_NV.double()
    possible_NV, certain_NV = _survivors(exact_NV, request, error_N[:, None])
    score_NV, token_N1 = exact_NV - E_NV.double().log(), token_N[:, None]
    rivals_NV = certain_NV.scatter(1, token_N1, False)
    best_N = score_NV.masked_fill(~rivals_NV, -torch.inf).amax(1)
    margin_N = best_N - score_NV.gather(1, token_N1)[:, 0]
    margin_N = torch.where(rivals_NV.any(1), margin_N, 0.0)
    return torch.where(possible_NV.gather(1, token_N1)[:, 0], margin_N, torch.inf)


def margin_bound(allowed: Allowance) -> float:
    """Return the largest margin that rounding explains: both tokens' logits move by all that is allowed."""
    return 2 * allowed.logits + RACE_ROUNDING


def _survivors(logits_NV: Tensor, request: Request, error_N1: Tensor) -> tuple[Tensor, Tensor]:
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
    high_NV, low_NV = logits_NV + 2 * error_N1, logits_NV - 2 * error_N1
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
        slack_N1 = 4 * error_N1 + V * 2.0**-23  # of a float32 cumulative sum of softmax values
        first_NV, alone_NV = up_to_NV == V, below_NV == V - 1
        possible_NV = possible_NV & ((share_high_NV + slack_N1 > 1 - request.top_p) | first_NV)
        certain_NV = certain_NV & ((share_low_NV - slack_N1 > 1 - request.top_p) | alone_NV)
    return possible_NV, certain_NV


def _sums(weight_NV: Tensor, order_NV: Tensor, count_NV: Tensor) -> Tensor:
    """Return the sum of the weights of the `count` lowest tokens."""
    sums_NV = weight_NV.gather(1, order_NV).cumsum(1)
    return torch.where(count_NV > 0, sums_NV.gather(1, (count_NV - 1).clamp_min(0)), 0.0)
