"""Tokens that the target's law excludes: what contract B forbids, whatever else its law is.

Promise: a token that the request's filter leaves no probability, by however much rounding may move the logits on both
sides, is a defect; nothing else here is.
"""

import torch

from harness.judge._evidence import Evidence
from harness.judge._race import filter_survivors
from harness.judge._suspects import round_of
from harness.judge._verdict import Divergence, Judgement

MOST_RECORDS = 1000  # forbidden tokens of one decode that are described one by one
NUMBERS = 2**24  # of logits that are filtered at a time


def judge_support(evidence: Evidence, judgement: Judgement) -> None:
    """Call every forbidden token wrong; `evidence.expected` is along the decoder's tokens. Effects: on `judgement`."""
    request = evidence.request
    labels = request.labels or evidence.numbers.labels(evidence.models.target.config.classes).tolist()
    places = [place for si in evidence.models.pyramid for place in _forbidden(evidence, si)]
    judgement.wrong_tokens = len(places)
    judgement.unclaimed -= len(places)
    judgement.unlisted = max(0, len(places) - MOST_RECORDS)
    for si, row, draw in places[:MOST_RECORDS]:
        component, detail = _part(evidence, row, si)
        actual, expected = (int(side.tokens_BL[row, draw]) for side in (evidence.actual, evidence.expected))
        position, channel = evidence.models.pyramid.place(draw)
        where = *request.addresses[row], labels[row], si, position
        judgement.defects.append(Divergence(component, detail, *where, actual, expected, channel=channel))


@torch.inference_mode()
def _forbidden(evidence: Evidence, si: int) -> list[tuple[int, int, int]]:
    """Return (scale, row, draw) of every token of a scale that may not be drawn."""
    span, request = evidence.models.pyramid.draws.span(si), evidence.request.at(si)
    if request.top_k <= 0 and request.top_p <= 0:
        return []
    logits_NV = evidence.expected.shown.guided_BLV[:, span].flatten(0, 1)
    token_N = evidence.actual.tokens_BL[:, span].flatten()
    # either side is as far as this from the exact logits, so they are twice as far from each other
    error = 2 * evidence.allowance(si).logits
    some = max(1, NUMBERS // logits_NV.shape[1])
    kept = []
    for logits_nV, token_n in zip(logits_NV.split(some), token_N.split(some), strict=True):
        possible_nV, _ = filter_survivors(logits_nV.double(), request, error)
        kept.append(possible_nV.gather(1, token_n[:, None])[:, 0])
    places = torch.nonzero(~torch.cat(kept).view(evidence.request.B, -1)).tolist()
    return [(si, row, span.start + at) for row, at in places]


def _part(evidence: Evidence, row: int, si: int) -> tuple[str, str]:
    """Return the component that let a token pass, and why it is wrong."""
    turn, request = round_of(evidence, row, si), evidence.request.at(si)
    of_filter = ", ".join(f"{name}={getattr(request, name):g}" for name in ("top_k", "top_p") if getattr(request, name))
    accepted = turn is not None and si < turn.first + turn.accepted
    word = "the draft's token is accepted, and" if accepted else "the token"
    return "accept" if accepted else "draw", f"{word} has probability 0 under the target's {of_filter}"
