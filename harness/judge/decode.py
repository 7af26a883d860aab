"""The judgement on one decode, beside the reference under the same noise.

Promise: every token of every image is compared with the reference's draw on the same prefix, and counted: draws =
identical + ties + wrong tokens + unclaimed ones. The reference follows the decoder's tokens, so one tie does not
cascade, and a decoder needs no hook for it. Where a decoder does not claim the tokens (contracts B and C) no token is
called right or wrong; what must hold anyway is checked all the same: every scale finished exactly once, and the
target's tensors those of the reference along the decoder's own tokens.
"""

from __future__ import annotations

from dataclasses import replace

from harness.judge.components import first_wrong
from harness.judge.counts import wrong_counts
from harness.judge.distances import distances
from harness.judge.evidence import Evidence
from harness.judge.form import malformed
from harness.judge.scope import say_what_was_compared
from harness.judge.tensors import judge_tensors
from harness.judge.tokens import judge_tokens
from harness.judge.verdict import Judgement
from harness.protocol.contract import Contract
from harness.protocol.trace import Trace


def judge(evidence: Evidence, contract: Contract = Contract.TOKENS, drafts: bool = True) -> Judgement:
    """Judge one decode.

    Args:
        evidence: `expected` is the reference's free run under the same noise.
        contract: what the decoder claims.
        drafts: nothing drafted means nothing proved; False for a decoder that is sequential and says so.

    Returns:
        The judgement, defects in causal order. Without a claim on tokens distances from the free run are measured.
    """
    return judge_along(evidence, contract, drafts)[0]


def judge_along(evidence: Evidence, contract: Contract, drafts: bool) -> tuple[Judgement, Evidence]:
    """Judge one decode; return the evidence along the decoder's own tokens, too. Arguments as `judge`."""
    evidence = replace(evidence, noise=evidence.numbers)  # drawn once, if at all
    request, actual, free = evidence.request, evidence.actual, evidence.expected
    claims_tokens = contract is Contract.TOKENS
    judgement = Judgement(request.B, claims_tokens=claims_tokens)
    if (wrong_form := malformed(evidence.models, request, actual)) is not None:
        judgement.defects.append(wrong_form)
        return judgement, evidence
    judgement.draws = actual.tokens_BL.numel()
    along = evidence.along()
    if not claims_tokens:
        judgement.distances = distances(evidence.models, actual, free)
    if contract is Contract.QUALITY:  # every other claim is about the target's law at every scale
        along = replace(along, unverified=tuple(unverified(actual, image) for image in range(request.B)))
    differ_BL = actual.tokens_BL != along.expected.tokens_BL
    judgement.identical = judgement.draws - int(differ_BL.sum())
    wrong = first_wrong(along)
    if claims_tokens:
        judge_tokens(along, wrong, differ_BL, judgement)
    else:
        judgement.unclaimed = judgement.draws - judgement.identical
    tensors = judge_tensors(along, wrong)
    judgement.wrong_tensors = len(tensors)
    judgement.defects += tensors
    judgement.defects += wrong_counts(evidence.models.pyramid, request, actual, contract)
    say_what_was_compared(along, contract, judgement)
    row = {address: b for b, address in reversed(list(enumerate(request.addresses)))}
    # a defect without a position (the final f_hat) comes behind the tokens that it is made of
    judgement.defects.sort(key=lambda d: (d.scale, row[d.seed, d.image], d.position < 0, d.position))
    if drafts and not any(turn.drafted for rounds in actual.rounds for turn in rounds):
        reason = "nothing was drafted, as far as Trace.rounds shows; pass --sequential for a decoder that never drafts"
        judgement.inconclusive.append(reason)
    return judgement, along


def unverified(actual: Trace, image: int) -> frozenset[int]:
    """Scales that a round without a target pass made final: they have no target tensors to check."""
    rounds = actual.rounds[image] if actual.rounds else []
    return frozenset(t.first + k for t in rounds if t.target_rows == 0 for k in range(t.finished))
