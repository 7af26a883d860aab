"""Tokens against the reference's draws: certified ties, or defects of a named component.

Promise: a tie is certified by the float64 reference on the decoder's own prefix; where the decoder shows its logits,
its own race must give its token too, so that no budget excuses a wrong draw. A differing token that is not certified
is wrong, and counted: past `MOST_RECORDS` records nothing is certified any more, since no tie could change the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from harness.judge.evidence import Costs, Evidence
from harness.judge.many import Tail, cost, surprise, too_many
from harness.judge.suspects import kept_drafts
from harness.judge.tensors import Found, Wrong, deltas
from harness.judge.ties import RACE_ROUNDING, margin_bound, race_margin, unusual_ties
from harness.judge.verdict import Divergence, Judgement
from harness.protocol.noise import TOKEN, SeededNoise
from harness.reference import cachefree
from harness.reference.draw import filter_logits
from harness.rounding.budget import Allowance

NOTHING = Allowance(0.0, 0.0, 0.0, "the decoder's own numbers")
MOST_RECORDS = 1000  # wrong tokens of one decode that are described one by one


def judge_tokens(evidence: Evidence, wrong: Wrong, differ_BL: Tensor, judgement: Judgement) -> None:
    """Certify every differing token as a tie against float64, or call it a defect."""
    costs = evidence.costs or costs_of(evidence)
    judgement.surprise = [-sum(of) for of in zip(*costs, strict=True)]
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
        accepted = cache(partial(kept_drafts, evidence, image))
        for position in torch.nonzero(differ_BL[image]).flatten().tolist():
            place, exact_V = (image, position), exact_1LV[0, position]
            found = _judge_token(evidence, wrong[image], noise, place, exact_V, accepted)
            (judgement.ties if found.component == "tie" else judgement.defects).append(found)
            if len(judgement.defects) == MOST_RECORDS:
                break
        if len(judgement.defects) == MOST_RECORDS:
            break
    _judge_together(evidence, costs, judgement)
    judgement.wrong_tokens = int(differ_BL.sum()) - len(judgement.ties)
    judgement.unlisted = judgement.wrong_tokens - len(judgement.defects)


def _judge_together(evidence: Evidence, costs: Costs, judgement: Judgement) -> None:
    """Call ties defects that are too many or too wide for rounding. Effects: on `judgement`."""
    pyramid = evidence.models.pyramid
    rejected = unusual_ties(judgement.ties, [evidence.allowance(si) for si in pyramid])
    for si in sorted({tie.scale for tie in judgement.ties}):
        margins = [tie.margin for tie in judgement.ties if tie.scale == si]
        weighed = surprise(margins, Tail.of(evidence.allowance(si)))
        judgement.surprise = [a + b for a, b in zip(judgement.surprise, weighed, strict=True)]
        if too_many([a - b for a, b in zip(weighed, costs[si], strict=True)], pyramid.S):
            rejected += [tie for tie in judgement.ties if tie.scale == si and tie.margin > 0 and tie not in rejected]
    for tie in rejected:
        judgement.ties.remove(tie)
        detail = "one of many ties whose margins together are beyond rounding"
        judgement.defects.append(replace(tie, component="unknown", detail=detail))


@torch.inference_mode()
def costs_of(evidence: Evidence) -> Costs:
    """Return, for every scale, what its draws cost for having been free to flip (`judge.many`), by the reference."""
    request, pyramid, kept = evidence.request, evidence.models.pyramid, evidence.expected.intermediates
    assert kept is not None
    noise, found = evidence.models.noise(request), []
    for si in pyramid:
        scores_BlV = filter_logits(kept.guided_BLV[:, pyramid.span(si)], request.top_k, request.top_p)
        if not evidence.greedy:
            scores_BlV = scores_BlV - noise.exponential(si, TOKEN, "judge").log()
        found.append(cost(scores_BlV.flatten(0, 1), Tail.of(evidence.allowance(si))))
    return found


def _judge_token(
    evidence: Evidence,
    wrong: Found | None,
    noise: SeededNoise,
    place: tuple[int, int],
    exact_V: Tensor,
    accepted_wrongly: Callable[[int], bool],
) -> Divergence:
    """Certify one differing token as a tie, or name the component that `wrong` found at or before its scale."""
    models, request, (image, position) = evidence.models, evidence.request, place
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
    # Where the decoder shows its logits, its own race must give its token: no budget excuses a wrong draw. A cumulative
    # sum of another shape may round otherwise at the edge of top-p, which `race_margin` allows for.
    own = race_margin(sides[0].double(), E_V, actual, request, NOTHING) if len(sides) == 2 else 0.0
    if margin <= bound and near and own <= RACE_ROUNDING:
        component, detail = "tie", "within the error budget of float64"
    elif wrong is not None and wrong[0] <= si:
        _, component, detail = wrong
    elif evidence.actual.intermediates is None:
        component, detail = "unknown", "the decoder exposes no intermediates; fill Trace.intermediates to locate it"
    else:
        component, detail = "draw", "guided logits agree, so filter, draw or noise is wrong"
        if accepted_wrongly(si):
            component, detail = "accept", "the draft's own token stands, and is not the target's draw"
    delta_logits, delta_f_hat = deltas(evidence, image, si, position)
    label = int(noise.labels(models.target.config.classes)[image])
    return Divergence(
        component, detail, request.seed, image, label, si, position, actual, expected,
        margin, bound, delta_logits, delta_f_hat,
    )  # fmt: skip
