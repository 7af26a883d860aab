"""Tokens against the reference's draws: certified ties, or defects of a named component.

Promise: a tie is certified by the float64 reference on the decoder's own prefix; where the decoder shows its logits,
its own race must give its token too, so that no budget excuses a wrong draw. A differing token that is not certified
is wrong, and counted: past `MOST_RECORDS` records nothing is certified any more, since no tie could change the verdict.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.judge.evidence import Evidence
from harness.judge.tensors import Found, Wrong, deltas
from harness.judge.ties import margin_bound, race_margin, unusual_ties
from harness.judge.verdict import Divergence, Judgement
from harness.protocol.noise import TOKEN, SeededNoise
from harness.reference import cachefree
from harness.reference.draw import draw, filter_logits

MOST_RECORDS = 1000  # wrong tokens of one decode that are described one by one


def judge_tokens(evidence: Evidence, wrong: Wrong, differ_BL: Tensor, judgement: Judgement) -> None:
    """Certify every differing token as a tie against float64, or call it a defect."""
    if not bool(differ_BL.any()):
        return
    models, request = evidence.models, evidence.request
    images = torch.nonzero(differ_BL.any(1)).flatten().tolist()
    noise = models.noise(request)
    labels_B = noise.labels(models.target.config.classes)
    wide = models.to(models.device, torch.float64)
    for image in images:  # one by one: the attention of a large batch in float64 would fill a GPU
        one = slice(image, image + 1)
        _, exact_1LV, _ = cachefree.teacher_forced(
            wide.target, wide.vae, request.cfg, labels_B[one], evidence.actual.tokens_BL[one], models.pyramid.S
        )
        for position in torch.nonzero(differ_BL[image]).flatten().tolist():
            found = _judge_token(evidence, wrong[image], noise, image, position, exact_1LV[0, position])
            (judgement.ties if found.component == "tie" else judgement.defects).append(found)
            if len(judgement.defects) == MOST_RECORDS:
                break
        if len(judgement.defects) == MOST_RECORDS:
            break
    for tie in unusual_ties(judgement.ties, [evidence.allowance(si) for si in models.pyramid]):
        judgement.ties.remove(tie)
        detail = "one of many ties whose margins together are beyond rounding"
        judgement.defects.append(replace(tie, component="unknown", detail=detail))
    judgement.wrong_tokens = int(differ_BL.sum()) - len(judgement.ties)
    judgement.unlisted = judgement.wrong_tokens - len(judgement.defects)


def _judge_token(
    evidence: Evidence, wrong: Found | None, noise: SeededNoise, image: int, position: int, exact_V: Tensor
) -> Divergence:
    """Certify one differing token as a tie, or name the component that `wrong` found at or before its scale."""
    models, request = evidence.models, evidence.request
    si = models.pyramid.level_of(position)
    allowed = evidence.allowance(si)
    E_V = torch.ones_like(exact_V)  # greedy: a race in which nobody is slowed down
    if not evidence.greedy:
        E_V = noise.exponential(si, TOKEN, "judge")[image, position - models.pyramid.begin(si)]
    actual, expected = (int(t.tokens_BL[image, position]) for t in (evidence.actual, evidence.expected))
    margin, bound = race_margin(exact_V, E_V, actual, request, allowed), margin_bound(allowed)
    kept = (evidence.actual.intermediates, evidence.expected.intermediates)  # a decoder may keep none
    sides = [k.guided_BLV[image, position] for k in kept if k is not None]
    near = all(float((side.double() - exact_V).abs().max()) <= allowed.logits for side in sides)
    # Where the decoder shows its logits, its own race must give its token: no budget excuses a wrong draw.
    own = draw(filter_logits(sides[0], request.top_k, request.top_p), E_V) if len(sides) == 2 else actual
    if margin <= bound and near and own == actual:
        component, detail = "tie", "within the error budget of float64"
    elif wrong is not None and wrong[0] <= si:
        _, component, detail = wrong
    elif evidence.actual.intermediates is None:
        component, detail = "unknown", "the decoder exposes no intermediates; fill Trace.intermediates to locate it"
    else:
        component, detail = "draw", "guided logits agree, so filter, draw, noise or acceptance is wrong"
    delta_logits, delta_f_hat = deltas(evidence, image, si, position)
    label = int(noise.labels(models.target.config.classes)[image])
    return Divergence(
        component, detail, request.seed, image, label, si, position, actual, expected,
        margin, bound, delta_logits, delta_f_hat,
    )  # fmt: skip
