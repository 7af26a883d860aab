"""What was compared, and what could not be. Promise: a verdict never speaks of what nobody showed."""

from __future__ import annotations

from harness.judge.evidence import Evidence
from harness.judge.verdict import Judgement
from harness.protocol.contract import Contract

SHOWN = ("inputs", "rows", "guided logits", "f_hat of every scale")  # what Trace.intermediates holds
COUNTS = "calls and rows"


def say_what_was_compared(evidence: Evidence, contract: Contract, judgement: Judgement) -> None:
    """List what was compared; a claim about the target without its tensors proves nothing.

    Effects: on `judgement`: `compared`, `not_compared`, and a reason to be inconclusive under contracts B and C.
    """
    actual = evidence.actual
    judgement.compared = ["tokens"] if contract is Contract.TOKENS else []
    judgement.compared.append("final f_hat")
    if contract is not Contract.TOKENS:
        judgement.not_compared["tokens"] = f"contract {contract.letter} does not claim them"
    if why := _unseen(evidence):
        unshown = SHOWN if actual.intermediates is None else SHOWN[:3]
        judgement.not_compared |= dict.fromkeys(unshown, why)
        if contract is not Contract.TOKENS:
            judgement.inconclusive.append(f"nothing of the target was compared: {why}")
    judgement.compared += [name for name in SHOWN if name not in judgement.not_compared]
    if actual.rounds and actual.target_calls and actual.target_rows:
        judgement.compared.append(COUNTS)
    else:
        judgement.not_compared[COUNTS] = "the trace lacks rounds, target_calls or target_rows"


def _unseen(evidence: Evidence) -> str:
    """Return why no tensor of the target could be compared; empty where one could."""
    if evidence.actual.intermediates is None:
        return "the decoder shows no Trace.intermediates"
    alone = [len(scales) == evidence.models.pyramid.S for scales in evidence.unverified]
    return "the draft decided every scale alone" if alone and all(alone) else ""
