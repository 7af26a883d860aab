"""The soft choices of `more_smooth`, and which of them rounding can turn.

Promise: scores and τ are the specification's, written here again, whatever the sampler under judgement takes; a choice
whose best codes rounding cannot bring together is never a tie.

Source: spec §7, `more_smooth`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.golden.cases import RecordedCase
from harness.protocol.noise import SMOOTH
from harness.protocol.request import Request
from harness.reference.draw import filter_logits

# A choice that rounding cannot move by a quarter of τ answers in proportion: no tie, and nudged runs show all of it.
LEAST = 0.25
# A code that stays two τ behind holds an eighth of the mixture at most, and nudged runs show how far that moves.
BEHIND = 2.0
TOSSES = 2  # pairs of moves that a filter is tried with


@dataclass(frozen=True)
class Choices:
    """The soft choices of one run.

    Args:
        score_BLV: logits after guidance times (1 + si/(S-1)), plus G, in units of τ; filtered codes too.
        kept_BLV: codes that pass the filter.
        best_BL2: the two best of those.
        factor_L: units of τ that a unit of logits is, by position.
    """

    score_BLV: Tensor
    kept_BLV: Tensor
    best_BL2: Tensor
    factor_L: Tensor


def temperature(ramp: float) -> float:
    """Return τ at si/(S-1) = `ramp`."""
    return max(0.27 * (1 - 0.95 * ramp), 0.005)


def choices(case: RecordedCase, guided_BLV: Tensor) -> Choices:
    """Return the choices that a case has at these guided logits (float64)."""
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
    """Return ties_BL: the choices whose best codes lie within the budget, in units of τ.

    Args:
        case: its filters decide who takes part; near a threshold rounding does.
        guided_BLV: the logits, float64.
        chosen: the choices at those.
        reach_BLV: how far rounding may move a code against the best one, in units of logits.
    """
    reach_tau_BLV = reach_BLV * chosen.factor_L[:, None]
    best_BL1 = chosen.best_BL2[..., :1]
    behind_BLV = chosen.score_BLV.gather(-1, best_BL1) - chosen.score_BLV
    rival_BLV = (behind_BLV <= reach_tau_BLV + BEHIND).scatter(-1, best_BL1, False)
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
