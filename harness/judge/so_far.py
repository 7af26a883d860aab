"""A decode that ended half-way: what of it was right, and how far it came.

Promise: the scales that were made final before the end are compared as those of a whole decode are, so that a crash
hides no mistake that came before it; what was never reached is not judged.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.judge.components import wrong_at, wrong_f_hat_at
from harness.judge.decode import judge, unverified
from harness.judge.evidence import Evidence
from harness.judge.tensors import tensor_divergence
from harness.judge.verdict import Divergence, Judgement
from harness.protocol.contract import Contract
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.trace import Trace
from harness.wording import count_of


def judge_so_far(evidence: Evidence, contract: Contract, drafts: bool, ended: Judgement) -> Judgement:
    """Judge what a decode did before it ended.

    Args:
        evidence: `actual` is the trace so far.
        contract: what the decoder claims.
        drafts: as in `judge`.
        ended: says how it ended; its defects stay.

    Returns:
        A judgement: wrong tensors first, in causal order, then how the decode ended.
    """
    if whole(evidence.actual, evidence.models.pyramid, evidence.models.target.config.V):
        made = judge(evidence, contract, drafts)
        made.defects = [*ended.defects, *made.defects]
        made.so_far = ended.so_far
        return made
    done = [finished(evidence.actual, evidence.models.pyramid, image) for image in range(evidence.request.B)]
    last, found = "", list[Divergence]()
    if max(done):
        tokens_BL = evidence.actual.tokens_BL.clamp(0, evidence.models.target.config.V - 1)
        along = replace(evidence, actual=replace(evidence.actual, tokens_BL=tokens_BL)).along()
        if contract is Contract.QUALITY:
            scales = tuple(unverified(evidence.actual, image) for image in range(evidence.request.B))
            along = replace(along, unverified=scales)
        found = [each for image, count in enumerate(done) for each in _first_wrong(along, image, count)]
        right = min(min((each.scale for each in found), default=min(done)), *done)
        last = f"; last good tensor: f_hat of scale {right - 1}" if right else "; no tensor was right"
    ended.defects = [*found, *ended.defects]
    ended.wrong_tensors = len(found)
    said = (f"{came(evidence.actual, evidence.models.pyramid)}{last}", ended.so_far)
    ended.so_far = "; ".join(part for part in said if part)
    return ended


def whole(trace: Trace, pyramid: ScalePyramid, V: int) -> bool:
    """Tell whether every scale was made final once, with tokens that there are."""
    inside = bool(((trace.tokens_BL >= 0) & (trace.tokens_BL < V)).all())
    return inside and not trace.missing_scales(pyramid)


def finished(trace: Trace, pyramid: ScalePyramid, image: int) -> int:
    """Return how many scales of an image, from the first on, were made final with tokens."""
    for si in pyramid:
        known = bool((trace.tokens_BL[image, pyramid.span(si)] >= 0).all())
        if int(trace.scale_writes_BS[image, si]) < 1 or not known:
            return si
    return pyramid.S


def came(trace: Trace, pyramid: ScalePyramid) -> str:
    """Say how far a decode came: rounds and final scales."""
    done = min(finished(trace, pyramid, image) for image in range(len(trace.tokens_BL)))
    rounds = max((len(turns) for turns in trace.rounds), default=0)
    scales = f"scales 0..{done - 1} of {pyramid.S} final" if done else f"no scale of {pyramid.S} final"
    return f"{count_of(rounds, 'round')}, {scales}"


def _first_wrong(along: Evidence, image: int, done: int) -> list[Divergence]:
    """Return the first wrong tensor of an image's final scales, if any."""
    actual, expected = along.actual.intermediates, along.expected.intermediates
    if actual is None or expected is None:
        return []
    for si in range(done):
        alone = bool(along.unverified) and si in along.unverified[image]
        found = (wrong_f_hat_at if alone else wrong_at)(along, actual, expected, image, si)
        if found is not None and torch.isfinite(actual.f_hat_SBCPP[si, image]).all():
            return [tensor_divergence(along, (si, *found), image)]
    return []
