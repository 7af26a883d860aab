"""Tokens against the reference's draws: certified ties, or defects of a named component.

Promise: a tie is certified by a more precise reference on the decoder's own prefix (`rounding.precision`); where the
decoder shows its logits, its own race must give its token too, so that no budget excuses a wrong draw. A differing
token that is not certified is wrong, and counted; `MOST_RECORDS` of a decode are described, the earliest scales first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from harness.judge.components import WrongTensors
from harness.judge.e_values import costs_of, weigh_decode
from harness.judge.evidence import Evidence
from harness.judge.race import RACE_ROUNDING, margin_bound, race_margins
from harness.judge.suspects import is_accepted_draft
from harness.judge.verdict import Divergence, Judgement
from harness.protocol.noise import TOKEN
from harness.protocol.pyramid import ScalePyramid
from harness.reference import cachefree
from harness.rounding.precision import certifying, images_at_once, wide

MOST_RECORDS = 1000  # wrong tokens of one decode that are described one by one
NUMBERS = 2**26  # of logits that are raced at a time


def judge_tokens(evidence: Evidence, wrong: WrongTensors, differ_BL: Tensor, judgement: Judgement) -> None:
    """Certify every differing token as a tie, or call it a defect.

    Args:
        evidence: `expected` along the decoder's tokens.
        wrong: the first wrong tensor of every image.
        differ_BL: tokens that are not the reference's.
        judgement: changed.
    """
    costs_SB3 = costs_of(evidence) if evidence.costs_SB3 is None else evidence.costs_SB3
    judgement.surprise = (-costs_SB3.sum(1)).tolist()
    places = torch.nonzero(differ_BL)
    if not len(places):
        return
    raced = sorted(_raced(evidence, places), key=lambda one: (one.scale, one.row, one.position))
    ties = [one for one in raced if one.is_tie]
    judgement.ties = [_divergence(evidence, one, "tie", "within the error budget") for one in ties]
    others = [one for one in raced if not one.is_tie]
    accepted_wrongly = cache(partial(is_accepted_draft, evidence))  # by image and scale
    judgement.defects = [_wrong_token(evidence, wrong, one, accepted_wrongly) for one in others[:MOST_RECORDS]]
    judgement.wrong_tokens = len(others)
    judgement.unlisted = len(others) - len(judgement.defects)
    if ties:
        weigh_decode(evidence, judgement, costs_SB3, [one.row for one in ties])


@dataclass(frozen=True)
class Raced:
    """One differing token and what the more precise race says of it; fields as in `Divergence`, `row` in the batch."""

    row: int
    scale: int
    position: int
    actual: int
    expected: int
    margin: float
    bound: float
    delta_logits: float
    delta_f_hat: float
    is_tie: bool


@torch.inference_mode()
def _raced(evidence: Evidence, places_N2: Tensor) -> Iterator[Raced]:
    """Race every differing token: each image goes through the certifying network up to its last one, many at a time."""
    models, by = evidence.models, certifying(evidence.models)
    labels_B, tokens_BL = evidence.numbers.labels(models.target.config.classes), evidence.actual.tokens_BL
    for last, rows in _by_last_scale(models.pyramid, places_N2):
        for some in rows.split(images_at_once(models, by)):
            with wide(models, by) as (network, vae):
                _, exact_bnV, _ = cachefree.teacher_forced(
                    network, vae, evidence.request.cfg, labels_B[some], tokens_BL[some], last + 1
                )
            here_N2 = places_N2[torch.isin(places_N2[:, 0], some)]
            for piece_n2 in here_N2.split(max(1, NUMBERS // models.target.config.V)):
                at = torch.searchsorted(some, piece_n2[:, 0].contiguous())
                yield from _raced_by(evidence, piece_n2, exact_bnV[at, piece_n2[:, 1]])


def _by_last_scale(pyramid: ScalePyramid, places_N2: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (scale, ascending rows) of the images whose last differing token is of that scale: later ones cost most."""
    last_of: dict[int, int] = {}
    for row, position in places_N2.tolist():
        last_of[row] = max(position, last_of.get(row, 0))
    scale_of = {row: pyramid.level_of(position) for row, position in last_of.items()}
    for last in sorted(set(scale_of.values())):
        yield last, torch.tensor(sorted(row for row, si in scale_of.items() if si == last), device=places_N2.device)


def _raced_by(evidence: Evidence, places_n2: Tensor, exact_nV: Tensor) -> list[Raced]:
    """Race some differing tokens by their precise logits."""
    models, request, (row_n, position_n) = evidence.models, evidence.request, places_n2.T
    level_L = torch.tensor(models.pyramid.levels(), device=models.device)
    scale_n = level_L[position_n]
    allowed_S = [evidence.allowance(si) for si in models.pyramid]
    error_n = _by_scale([allowed.logits for allowed in allowed_S], scale_n)
    bound_n = _by_scale([margin_bound(allowed) for allowed in allowed_S], scale_n)
    E_nV, token_n = (
        _exponentials(evidence, row_n, position_n, scale_n, exact_nV),
        evidence.actual.tokens_BL[row_n, position_n],
    )
    margin_n = race_margins(exact_nV, E_nV, token_n, request, error_n)
    kept = (evidence.actual.intermediates, evidence.expected.intermediates)  # a decoder may keep none
    sides = [k.guided_BLV[row_n, position_n] for k in kept if k is not None]
    is_tie_n = margin_n <= bound_n
    for side_nV in sides:
        is_tie_n &= (side_nV.double() - exact_nV).abs().amax(1) <= error_n
    logits_n, f_hat_n = torch.full_like(margin_n, torch.nan), torch.full_like(margin_n, torch.nan)
    if kept[0] is not None and kept[1] is not None:
        # Where the decoder shows its logits, its own race must give its token: no budget excuses a wrong draw. A
        # cumulative sum of another shape may round otherwise at the edge of top-p, which `race_margins` allows for.
        is_tie_n &= race_margins(sides[0], E_nV, token_n, request, torch.zeros_like(error_n)) <= RACE_ROUNDING
        logits_n = (sides[0] - sides[1]).abs().amax(1).double()
        f_hat_SB = (kept[0].f_hat_SBCPP - kept[1].f_hat_SBCPP).abs().flatten(2).amax(2)
        f_hat_n = f_hat_SB[scale_n, row_n].double()
    expected_n = evidence.expected.tokens_BL[row_n, position_n]
    whole = torch.stack((row_n, scale_n, position_n, token_n, expected_n), 1).tolist()
    real = torch.stack((margin_n, bound_n, logits_n, f_hat_n), 1).tolist()
    rows = zip(whole, real, is_tie_n.tolist(), strict=True)
    return [Raced(a[0], a[1], a[2], a[3], a[4], b[0], b[1], b[2], b[3], tie) for a, b, tie in rows]


def _by_scale(values: list[float], scale_n: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=scale_n.device)[scale_n]


def _exponentials(evidence: Evidence, row_n: Tensor, position_n: Tensor, scale_n: Tensor, like_nV: Tensor) -> Tensor:
    """Return E_nV of some draws; ones where both sides are greedy: a race in which nobody is slowed down."""
    E_nV = torch.ones_like(like_nV)
    if evidence.greedy:
        return E_nV
    noise, pyramid = evidence.numbers, evidence.models.pyramid
    for si in scale_n.unique().tolist():
        at = scale_n == si
        E_BlV = noise.exponential(si, TOKEN, "judge")
        E_nV[at] = E_BlV[row_n[at], position_n[at] - pyramid.begin(si)].to(E_nV.dtype)
    return E_nV


def _wrong_token(
    evidence: Evidence, wrong: WrongTensors, one: Raced, accepted_wrongly: Callable[[int, int], bool]
) -> Divergence:
    """Name the component of a wrong token: what `wrong` found at or before its scale, else acceptance or the draw."""
    first = wrong[one.row]
    if first is not None and first.scale <= one.scale:
        return _divergence(evidence, one, first.component, first.detail)
    if evidence.actual.intermediates is None:
        why = "the decoder exposes no intermediates; fill Trace.intermediates to locate it"
        return _divergence(evidence, one, "unknown", why)
    if accepted_wrongly(one.row, one.scale):
        why = "the draft's own token is accepted, and is not the target's draw"
        return _divergence(evidence, one, "accept", why)
    why = "guided logits agree, so filter, draw or noise is wrong"
    return _divergence(evidence, one, "draw", why)


def _divergence(evidence: Evidence, one: Raced, component: str, detail: str) -> Divergence:
    request, noise = evidence.request, evidence.numbers
    labels = request.labels or noise.labels(evidence.models.target.config.classes).tolist()
    return Divergence(
        component,
        detail,
        **request.where(one.row),
        label=labels[one.row],
        scale=one.scale,
        position=one.position,
        actual=one.actual,
        expected=one.expected,
        margin=one.margin,
        bound=one.bound,
        delta_logits=one.delta_logits,
        delta_f_hat=one.delta_f_hat,
    )
