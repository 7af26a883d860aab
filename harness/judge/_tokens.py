"""Tokens against the reference's draws: certified ties, or defects of a named component.

Promise: a tie is certified by a more precise reference on the decoder's own prefix (`rounding.precision`); where the
decoder shows its logits, its own race must give its token too, so that no budget excuses a wrong draw. A differing
token that is not certified is wrong, and counted; `MOST_RECORDS` of a decode are described, the earliest scales first.
Under contract B a token is wrong where the target's law forbids it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from harness.judge._components import WrongTensors
from harness.judge._evidence import Evidence
from harness.judge._suspects import ACCEPTED, CLUES, explain_draws, is_accepted_draft, round_of
from harness.judge._ties import costs_of_draws, exponentials, margins_of_differing_tokens, weigh_decode
from harness.judge._verdict import Divergence, Judgement
from harness.protocol.pyramid import ScalePyramid
from harness.reference import teacher_forced
from harness.rounding import certifying_networks, certifying_precision, images_per_certifying_pass

MOST_RECORDS = 1000  # wrong or forbidden tokens of one decode that are described one by one
NUMBERS = 2**26  # of logits that are raced at a time


def judge_tokens(evidence: Evidence, wrong: WrongTensors, differ_BL: Tensor, judgement: Judgement) -> None:
    """Certify every token that differs along the decoder's own as a tie, or call it a defect, on `judgement`."""
    costs_SB3 = costs_of_draws(evidence) if evidence.costs_SB3 is None else evidence.costs_SB3
    judgement.surprise = (-costs_SB3.sum(1)).tolist()
    places = torch.nonzero(differ_BL)
    if not len(places):
        return
    raced = sorted(_raced(evidence, places), key=lambda one: (one.token.scale, one.row, *one.token.place))
    ties = [one for one in raced if one.is_tie]
    others = [one for one in raced if not one.is_tie]
    judgement.ties = [replace(one.token, component="tie", detail="within the error budget") for one in ties]
    judgement.defects = _wrong_tokens(evidence, wrong, others[:MOST_RECORDS])
    judgement.wrong_tokens = len(others)
    judgement.unlisted = len(others) - len(judgement.defects)
    if ties:
        weigh_decode(evidence, judgement, costs_SB3, [one.row for one in ties])


@dataclass(frozen=True)
class Raced:
    """One differing token, the row of its image in the batch, and whether the more precise race leaves it a tie."""

    row: int
    token: Divergence
    is_tie: bool


@torch.inference_mode()
def _raced(evidence: Evidence, places_N2: Tensor) -> Iterator[Raced]:
    """Race every differing token: each image goes through the certifying network up to its last one, many at a time."""
    models, by = evidence.models, certifying_precision(evidence.models)
    labels_B, tokens_BL = evidence.numbers.labels(models.target.config.classes), evidence.actual.tokens_BL
    for last, rows in _by_last_scale(models.pyramid, places_N2):
        for some in rows.split(images_per_certifying_pass(models, by)):
            if evidence.exact is not None:
                exact_bnV = evidence.exact.guided_BLV[some]
            else:
                with certifying_networks(models, by) as (network, vae):
                    request, labels_b, tokens_bL = evidence.request, labels_B[some], tokens_BL[some]
                    _, exact_bnV, _ = teacher_forced(network, vae, request, labels_b, tokens_bL, last + 1)
            here_N2 = places_N2[torch.isin(places_N2[:, 0], some)]
            scale_N = torch.tensor(models.pyramid.draws.levels(), device=some.device)[here_N2[:, 1]]
            for si in scale_N.unique().tolist():
                for piece_n2 in here_N2[scale_N == si].split(max(1, NUMBERS // models.target.config.V)):
                    at = torch.searchsorted(some, piece_n2[:, 0].contiguous())
                    yield from _raced_by(evidence, si, piece_n2, exact_bnV[at, piece_n2[:, 1]])


def _by_last_scale(pyramid: ScalePyramid, places_N2: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (scale, ascending rows) of the images whose last differing token is of that scale: later ones cost most."""
    last_of: dict[int, int] = dict(sorted(places_N2.tolist()))  # the highest draw of a row stands last
    scale_of = {row: pyramid.draws.level_of(draw) for row, draw in last_of.items()}
    for last in sorted(set(scale_of.values())):
        yield last, torch.tensor(sorted(row for row, si in scale_of.items() if si == last), device=places_N2.device)


def _raced_by(evidence: Evidence, si: int, places_n2: Tensor, exact_nV: Tensor) -> list[Raced]:
    """Race some differing tokens of one scale by their precise logits."""
    models, request, (row_n, draw_n) = evidence.models, evidence.request.at(si), places_n2.T
    allowed, token_n = evidence.allowance(si).logits, evidence.actual.tokens_BL[row_n, draw_n]
    E_nV = None if evidence.greedy else exponentials(evidence.numbers, models.pyramid, row_n, draw_n)
    actual, expected = evidence.actual.intermediates, evidence.expected.intermediates  # a decoder may show none
    shown = [side.guided_BLV[row_n, draw_n] for side in (actual, expected) if side is not None]
    races = margins_of_differing_tokens(exact_nV, E_nV, token_n, request, allowed, shown)
    is_tie_n, margin_n, bound_n = races.is_tie_N(allowed), races.margin_N, races.bound_N
    logits_n, f_hat_n = torch.full_like(races.margin_N, torch.nan), torch.full_like(races.margin_N, torch.nan)
    if actual is not None and expected is not None:
        # Where the decoder shows its logits, its own race must give its token: no budget excuses a wrong draw. A
        # cumulative sum of another shape may round otherwise at the edge of top-p, which a race allows for.
        own = margins_of_differing_tokens(shown[0], E_nV, token_n, request, 0.0)
        is_own_n = ~own.is_tie_N(0.0) & (races.margin_N <= races.bound_N)  # rounding explains the precise race alone
        is_tie_n &= ~is_own_n
        margin_n = torch.where(is_own_n, own.margin_N, margin_n)
        bound_n = torch.where(is_own_n, own.bound_N, bound_n)
        logits_n = (shown[0] - shown[1]).abs().amax(1).double()
        f_hat_B = (actual.f_hat_SBCPP[si] - expected.f_hat_SBCPP[si]).abs().flatten(1).amax(1)
        f_hat_n = f_hat_B[row_n].double()
    labels = request.labels or evidence.numbers.labels(models.target.config.classes).tolist()
    expected_n = evidence.expected.tokens_BL[row_n, draw_n]
    whole = torch.stack((row_n, draw_n, token_n, expected_n), 1).tolist()
    real = torch.stack((margin_n, bound_n, logits_n, f_hat_n), 1).tolist()
    raced = []
    for (row, draw, *tokens), reals, is_tie in zip(whole, real, is_tie_n.tolist(), strict=True):
        (seed, image), (position, channel) = request.addresses[row], models.pyramid.place(draw)
        token = Divergence("", "", seed, image, labels[row], si, position, *tokens, *reals)
        raced.append(Raced(row, replace(token, channel=channel), is_tie))
    return raced


def _wrong_tokens(evidence: Evidence, wrong: WrongTensors, others: Sequence[Raced]) -> list[Divergence]:
    """Name the component of wrong tokens: what `wrong` says at or before their scale, else acceptance or the draw."""
    is_draft_accepted = cache(partial(is_accepted_draft, evidence))  # by image and number of scales with right logits
    drawn_as = cache(partial(explain_draws, evidence))  # likewise
    divergences = []
    for one in others:
        first = wrong[one.row]
        if first is not None and first.scale + first.is_f_hat <= one.token.scale:
            component, detail = first.component, first.detail
        elif evidence.actual.intermediates is None:
            component = "unknown"
            detail = "the decoder exposes no intermediates; fill Trace.intermediates to locate it"
        else:
            right = one.row, evidence.models.pyramid.S if first is None else first.scale + first.is_f_hat
            component, detail = drawn_as(*right)
            if (component, detail) in CLUES and is_draft_accepted(*right):
                component, detail = ACCEPTED
        divergences.append(replace(one.token, component=component, detail=detail))
    return divergences


def judge_support(evidence: Evidence, judgement: Judgement, forbidden: Sequence[tuple[int, int]]) -> None:
    """Call every forbidden token, by row and draw, wrong. Effects: on `judgement`."""
    request = evidence.request
    labels = request.labels or evidence.numbers.labels(evidence.models.target.config.classes).tolist()
    level_of = evidence.models.pyramid.draws.level_of
    free = evidence.may_differ_from or 0  # tokens before it are judged one by one
    places = sorted((level_of(draw), row, draw) for row, draw in forbidden if level_of(draw) >= free)
    judgement.wrong_tokens += len(places)
    judgement.unclaimed -= len(places)
    judgement.unlisted += max(0, len(places) - MOST_RECORDS)
    for si, row, draw in places[:MOST_RECORDS]:
        turn, of_scale = round_of(evidence, row, si), request.at(si)
        accepted = turn is not None and si < turn.first + turn.accepted
        set_to = {name: getattr(of_scale, name) for name in ("top_k", "top_p")}
        filters = ", ".join(f"{name}={value:g}" for name, value in set_to.items() if value)
        token = "the draft's token is accepted, and" if accepted else "the token"
        component, detail = "accept" if accepted else "draw", f"{token} has probability 0 under the target's {filters}"
        actual, expected = (int(side.tokens_BL[row, draw]) for side in (evidence.actual, evidence.expected))
        position, channel = evidence.models.pyramid.place(draw)
        where = *request.addresses[row], labels[row], si, position
        judgement.defects.append(Divergence(component, detail, *where, actual, expected, channel=channel))
