"""Counts of calls and rows, recomputed from the rounds. Promise: a count that is too low to be true is a defect."""

from __future__ import annotations

from harness.judge.verdict import Divergence
from harness.protocol.contract import Contract
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request
from harness.protocol.trace import Round, Trace


def wrong_counts(pyramid: ScalePyramid, request: Request, trace: Trace, contract: Contract) -> list[Divergence]:
    """List the first count of every image that is too low.

    A target pass of a round computes every scale that it makes final, at least. Where every token is the target's
    (contracts A and B) it computes every position of the pyramid.

    Args:
        pyramid: scales.
        request: what was drawn.
        trace: of a known form; counts that it does not hold are not checked.
        contract: what the decoder claims.
    """
    found = []
    for image in range(request.B):
        detail = _wrong(pyramid, trace, image, contract)
        if detail:
            found.append(Divergence("counts", detail, **request.where(image)))
    return found


def _wrong(pyramid: ScalePyramid, trace: Trace, image: int, contract: Contract) -> str:
    rounds = trace.rounds[image] if trace.rounds else []
    passes = [turn for turn in rounds if turn.target_rows]
    for turn in passes:
        due = sum(pyramid.tokens(turn.first + k) for k in range(turn.finished))
        if turn.target_rows < due:
            return f"the round at scale {turn.first} counts {turn.target_rows} target rows for {due} final positions"
    least_rows = sum(turn.target_rows for turn in passes)
    if contract.entails(Contract.LAW):
        least_rows = max(least_rows, pyramid.L)
        alone = next((turn for turn in rounds if not turn.target_rows), None)
        if alone is not None:
            return f"the round at scale {alone.first} counts no target rows, and the target decides every scale"
    elif not rounds:
        return ""
    for name, least in (("target_calls", _calls(passes, contract)), ("target_rows", least_rows)):
        counts: list[int] = getattr(trace, name)
        if counts and counts[image] < least:
            return f"{name} is {counts[image]}, and cannot be below {least}"
    return ""


def _calls(passes: list[Round], contract: Contract) -> int:
    return max(len(passes), int(contract.entails(Contract.LAW)))
