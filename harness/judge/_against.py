"""Two decoders under the same numbers: from which scale on they diverge, and in which tensor first.

Promise: neither is called right; what both show is compared in the order in which it is computed, up to the first scale
whose tokens differ, or to where one of them ended. Numbers of two right decoders differ by rounding, and so do close
draws. What a tensor that differs was made of is said of the side whose tensor is not the reference's either.
"""

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from harness.judge._components import first_wrong_of
from harness.judge._decode import SHOWN, final_scales, unverified_scales
from harness.judge._evidence import Evidence
from harness.judge._form import COUNTS, malformed, unreadable, wrong_shape
from harness.judge._ties import exponentials, margin_bound, margins_of_differing_tokens
from harness.judge._verdict import Divergence, Judgement
from harness.protocol import Trace
from harness.reference.sequential import sample_sequential

PARTS = {"x_RLD": "query", "rows_RLV": "mask or cache", "guided_BLV": "guidance"}  # what makes each tensor


@dataclass(frozen=True)
class Rivals:
    """Two decodes of one request: `evidence.actual` is the first one's trace, `evidence.expected` the second one's."""

    evidence: Evidence
    names: tuple[str, str]  # of the decoders, each with its commit where it has one

    def swapped(self) -> Self:
        evidence = replace(self.evidence, actual=self.evidence.expected, expected=self.evidence.actual)
        return replace(self, evidence=evidence, names=(self.names[1], self.names[0]))

    @cached_property
    def along(self) -> Evidence:
        """The first one's trace beside the reference along its own tokens, those that were never drawn being any."""
        models, request, trace = self.evidence.models, self.evidence.request, self.evidence.actual
        tokens_BL = trace.tokens_BL.clamp(0, models.target.config.V - 1)
        numbers, greedy = self.evidence.numbers, self.evidence.greedy
        run = sample_sequential(models.target, models.vae, request, numbers, tokens_BL, greedy)
        alone = tuple(unverified_scales(trace, image) for image in range(request.B))
        return replace(self.evidence, actual=replace(trace, tokens_BL=tokens_BL), expected=run, unverified=alone)

    def explained(self, image: int, si: int) -> tuple[str, str] | None:
        """Return component and clause on the first one's first wrong tensor of a scale; None where it is right."""
        wrong = first_wrong_of(self.along, image, [si])
        return None if wrong is None else (wrong.component, f"{self.names[0]}: {wrong.detail}")


def judge_against(evidence: Evidence, names: tuple[str, str]) -> Judgement:
    """Compare one decode with another decoder's, whose trace is `evidence.expected`; `names` are those of both.

    There is a record an image for the first tensor that differs, and one for every differing token of the first scale
    that has any; tokens of later scales have another prefix, and are counted as unclaimed.
    """
    models, request, sides = evidence.models, evidence.request, (evidence.actual, evidence.expected)
    wrong = [malformed(models, request, trace) for trace in sides]
    if any(wrong):  # a decode of which something is missing ends there
        is_plain = not any(ask(models, request, trace) for ask in (unreadable, wrong_shape) for trace in sides)
        ended = tuple(Judgement(request.B, defects=[each]) if each else None for each in wrong)
        return judge_ends(evidence if is_plain else None, names, ended)
    judgement = Judgement(request.B)
    _compare(evidence, names, [models.pyramid.S] * request.B, judgement)
    return judgement


def judge_ends(evidence: Evidence | None, names: tuple[str, str], ended: tuple[Judgement | None, ...]) -> Judgement:
    """Compare two decodes of which one, or both, did not end well: `ended` has why, None of a side that did.

    What both made final before is compared; the end is the first thing told, where the two end otherwise. `evidence`
    holds both traces as far as they came; None where one shows nothing of itself.
    """
    B = next(each.images for each in ended if each is not None)
    judgement = Judgement(B)
    ends = [  # without addresses in memory
        [(one.component, re.sub(r"0x[0-9a-f]+", "0x", one.detail)) for one in each.defects] if each else []
        for each in ended
    ]
    alike = ends[0] == ends[1]
    if not alike:
        judgement.defects = [
            replace(each, detail=f"{name}: {each.detail}")
            for name, end in zip(names, ended, strict=True)
            for each in (end.defects if end else ())
        ]
    final_B = [0] * B
    if evidence is not None:
        sides, pyramid = (evidence.actual, evidence.expected), evidence.models.pyramid
        final_B = [min(final_scales(side, pyramid, image) for side in sides) for image in range(B)]
        _compare(evidence, names, final_B, judgement)
    reached = f"compared up to there: {max(final_B)} final scales" if max(final_B) else "no scale was final before"
    if alike:
        first = next(each.defects[0] for each in ended if each is not None)
        judgement.so_far = f"both end alike, component {first.component} ({first.detail}); {reached}"
        if not max(final_B):
            judgement.inconclusive.append(f"nothing was compared: {judgement.so_far}")
    else:
        judgement.so_far = reached
    return judgement


def _compare(evidence: Evidence, names: tuple[str, str], final_B: list[int], judgement: Judgement) -> None:
    rivals, pyramid = Rivals(replace(evidence, noise=evidence.numbers), names), evidence.models.pyramid
    same_BL = evidence.actual.tokens_BL == evidence.expected.tokens_BL
    for image, final in enumerate(final_B):
        judgement.draws += pyramid.draws.begin(final)
        judgement.identical += int(same_BL[image, : pyramid.draws.begin(final)].sum())
    judgement.compared = ["tokens", "final f_hat"]
    if evidence.actual.intermediates is not None and evidence.expected.intermediates is not None:
        judgement.compared += SHOWN
    else:
        judgement.not_compared = dict.fromkeys(SHOWN, "one of the two shows no Trace.intermediates")
    ends, judgement.defects = judgement.defects, []
    for image, final in enumerate(final_B):
        _judge_image(rivals, image, final, judgement)
    judgement.defects.sort(key=lambda each: each.scale)  # a stable sort: images stay in order
    judgement.defects = [*ends, *judgement.defects]


def changed_counts(actual: Trace, expected: Trace) -> list[str]:
    """Say which counts are others, where both show them: no defect, but what a change may have been for."""
    counts = [(name, getattr(actual, name), getattr(expected, name)) for name in COUNTS]
    return [f"{name}: {sum(a)}, and {sum(b)} by the other" for name, a, b in counts if a and b and a != b]


def _judge_image(rivals: Rivals, image: int, final: int, judgement: Judgement) -> None:
    evidence = rivals.evidence
    actual_L, expected_L = evidence.actual.tokens_BL[image], evidence.expected.tokens_BL[image]
    wrong, records, pyramid = None, list[Divergence](), evidence.models.pyramid
    for si in range(final):
        wrong = wrong or _wrong_tensor(rivals, image, si)
        span = pyramid.draws.span(si)
        differ_n = torch.nonzero(actual_L[span] != expected_L[span]).flatten()
        if len(differ_n):
            records = _judge_tokens(evidence, image, si, span.start + differ_n, wrong is None)
            rest = slice(span.stop, pyramid.draws.begin(final))
            judgement.unclaimed += int((actual_L[rest] != expected_L[rest]).sum())
            break
        wrong = wrong or _wrong_f_hat(evidence, image, si)
    if wrong is not None:
        judgement.defects.append(wrong)
        judgement.wrong_tensors += 1
    for record in records:
        (judgement.ties if record.component == "tie" else judgement.defects).append(record)
        judgement.wrong_tokens += record.component != "tie"


def _wrong_tensor(rivals: Rivals, image: int, si: int) -> Divergence | None:
    """Return the first of input, rows and guided logits that differs by more than two right decoders may."""
    evidence = rivals.evidence
    one, other = evidence.actual.intermediates, evidence.expected.intermediates
    if one is None or other is None:
        return None
    pyramid = evidence.models.pyramid
    span, draws = pyramid.span(si), pyramid.draws.span(si)
    allowed = evidence.allowance(si)
    x = float(other.x_RLD[:, span].nan_to_num().abs().max())
    x_error = max(2 * allowed.f_hat, 1e-5) * max(1.0, x)
    errors = {"x_RLD": x_error, "rows_RLV": 2 * evidence.budget.rows, "guided_BLV": 2 * allowed.logits}
    for name, error in errors.items():
        rows = [image] if name == "guided_BLV" else evidence.request.rows_of(image)
        place = span if name == "x_RLD" else draws
        far = _distance(getattr(one, name)[rows, place], getattr(other, name)[rows, place])
        if far > error:
            detail = f"{name} of scale {si} differs by {far:.3g}, rounding explains {error:.2g}"
            found = [each for each in (rivals.explained(image, si), rivals.swapped().explained(image, si)) if each]
            component = found[0][0] if found else PARTS[name]
            return _at(evidence, component, "; ".join([detail, *(clause for _, clause in found)]), image, si)
    return None


def _wrong_f_hat(evidence: Evidence, image: int, si: int) -> Divergence | None:
    one, other = evidence.actual.intermediates, evidence.expected.intermediates
    error = 2 * evidence.budget.f_hat
    if one is not None and other is not None:
        far = _distance(one.f_hat_SBCPP[si, image], other.f_hat_SBCPP[si, image])
    elif si == evidence.models.pyramid.S - 1:
        far = _distance(evidence.actual.f_hat_BCPP[image], evidence.expected.f_hat_BCPP[image])
    else:
        return None
    if far <= error:
        return None
    detail = f"f_hat after scale {si} differs by {far:.3g}, rounding explains {error:.2g}"
    return _at(evidence, "f_hat", detail, image, si)


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference; what neither side wrote is equal, what one wrote alone is infinitely far."""
    far = (one.double() - other.double()).abs()
    far = torch.where(torch.isnan(one) & torch.isnan(other), torch.zeros_like(far), far)
    return float(far.nan_to_num(torch.inf).max())


def _at(evidence: Evidence, component: str, detail: str, image: int, si: int) -> Divergence:
    labels, where = evidence.request.labels, evidence.request.where(image)
    return Divergence(component, detail, **where, label=labels[image] if labels else -1, scale=si)


def _judge_tokens(evidence: Evidence, image: int, si: int, draw_n: Tensor, may_tie: bool) -> list[Divergence]:
    """Record tokens that differ: a tie where the logits agree and the race between the two is within rounding."""
    allowed, expected = evidence.allowance(si).logits, evidence.expected.intermediates
    bound, row_n = margin_bound(allowed), torch.full_like(draw_n, image)
    tokens_2n = torch.stack([side.tokens_BL[row_n, draw_n] for side in (evidence.actual, evidence.expected)])
    margin_n = torch.full(draw_n.shape, torch.nan, dtype=torch.float64, device=draw_n.device)
    if expected is not None and may_tie:
        exact_nV, E_nV = expected.guided_BLV[row_n, draw_n], None
        if not evidence.greedy:
            noise = evidence.numbers
            noise.labels(evidence.models.target.config.classes)  # drawn before all numbers
            E_nV = exponentials(noise, evidence.models.pyramid, row_n, draw_n)
        one_n, other_n = (
            margins_of_differing_tokens(exact_nV, E_nV, token_n, evidence.request.at(si), allowed).margin_N
            for token_n in tokens_2n
        )
        margin_n = torch.where(torch.isfinite(exact_nV).all(1), torch.maximum(one_n, other_n), torch.nan)
    records = []
    columns = (draw_n.tolist(), *tokens_2n.tolist(), margin_n.tolist())
    for draw, actual, other, margin in zip(*columns, strict=True):
        component, detail = "draw", "the logits agree, and the tokens differ"
        if math.isnan(margin):
            component, detail = "token", "the tokens differ"
        elif margin <= bound:
            component, detail = "tie", "rounding decides between the two"
        position, channel = evidence.models.pyramid.place(draw)
        place = replace(_at(evidence, component, detail, image, si), position=position, channel=channel)
        records.append(replace(place, actual=actual, expected=other, margin=margin, bound=bound))
    return records
