"""The race of a differing token: what rounding can do to a categorical draw, and what it cannot.

Promise: a differing token is a tie only if the more precise reference itself, on the same prefix, cannot tell the two
tokens apart within the error budget. Pure functions of many draws at once; the budget is an argument, never derived
from what is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from harness.protocol import Request
from harness.protocol.noise import TOKEN, Noise
from harness.protocol.pyramid import ScalePyramid

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
