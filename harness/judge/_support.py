"""Tokens that the target's law excludes: what contract B forbids, whatever else its law is.

Promise: a token that the request's filter leaves no probability, by however much rounding may move the logits on both
sides, is a defect; nothing else here is.
"""

from collections.abc import Sequence

from harness.judge._evidence import Evidence
from harness.judge._suspects import round_of
from harness.judge._verdict import Divergence, Judgement

MOST_RECORDS = 1000  # forbidden tokens of one decode that are described one by one


def judge_support(evidence: Evidence, judgement: Judgement, forbidden: Sequence[tuple[int, int]]) -> None:
    """Call every forbidden token, by row and draw, wrong. Effects: on `judgement`."""
    request = evidence.request
    labels = request.labels or evidence.numbers.labels(evidence.models.target.config.classes).tolist()
    level_of = evidence.models.pyramid.draws.level_of
    places = sorted((level_of(draw), row, draw) for row, draw in forbidden)
    judgement.wrong_tokens = len(places)
    judgement.unclaimed -= len(places)
    judgement.unlisted = max(0, len(places) - MOST_RECORDS)
    for si, row, draw in places[:MOST_RECORDS]:
        component, detail = _part(evidence, row, si)
        actual, expected = (int(side.tokens_BL[row, draw]) for side in (evidence.actual, evidence.expected))
        position, channel = evidence.models.pyramid.place(draw)
        where = *request.addresses[row], labels[row], si, position
        judgement.defects.append(Divergence(component, detail, *where, actual, expected, channel=channel))


def _part(evidence: Evidence, row: int, si: int) -> tuple[str, str]:
    """Return the component that let a token pass, and why it is wrong."""
    turn, request = round_of(evidence, row, si), evidence.request.at(si)
    of_filter = ", ".join(f"{name}={getattr(request, name):g}" for name in ("top_k", "top_p") if getattr(request, name))
    accepted = turn is not None and si < turn.first + turn.accepted
    word = "the draft's token is accepted, and" if accepted else "the token"
    return "accept" if accepted else "draw", f"{word} has probability 0 under the target's {of_filter}"
