"""Two decoders under the same numbers: from which scale on they diverge, and in which tensor first.

Promise: neither is called right; what both show is compared in the order in which it is computed, up to the first scale
whose tokens differ. Numbers of two right decoders differ by rounding, and so do close draws.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from harness.judge._decode import SHOWN
from harness.judge._evidence import Evidence
from harness.judge._form import COUNTS, malformed
from harness.judge._race import exponentials, margin_bound, margins_of_differing_tokens
from harness.judge._verdict import Divergence, Judgement
from harness.protocol import Trace

PARTS = {"x_RLD": "query", "rows_RLV": "mask or cache", "guided_BLV": "guidance"}  # what makes each tensor


def judge_against(evidence: Evidence, other: str) -> Judgement:
    """Compare one decode with another decoder's, whose trace is `evidence.expected` and whose name is `other`.

    There is a record an image for the first tensor that differs, and one for every differing token of the first scale
    that has any; tokens of later scales have another prefix, and are counted as unclaimed.
    """
    evidence = replace(evidence, noise=evidence.numbers)  # drawn once, if at all
    judgement = Judgement(evidence.request.B)
    for side, trace in (("", evidence.actual), (f"{other}: ", evidence.expected)):
        wrong = malformed(evidence.models, evidence.request, trace)
        if wrong is not None:
            judgement.defects.append(replace(wrong, detail=f"{side}{wrong.detail}"))
    if judgement.defects:
        return judgement
    judgement.draws = evidence.actual.tokens_BL.numel()
    judgement.identical = int((evidence.actual.tokens_BL == evidence.expected.tokens_BL).sum())
    judgement.compared = ["tokens", "final f_hat"]
    if evidence.actual.intermediates is not None and evidence.expected.intermediates is not None:
        judgement.compared += SHOWN
    else:
        judgement.not_compared = dict.fromkeys(SHOWN, "one of the two shows no Trace.intermediates")
    for image in range(evidence.request.B):
        _judge_image(evidence, image, judgement)
    judgement.defects.sort(key=lambda each: each.scale)  # a stable sort: images stay in order
    return judgement


def changed_counts(actual: Trace, expected: Trace) -> list[str]:
    """Say which counts are others, where both show them: no defect, but what a change may have been for."""
    counts = [(name, getattr(actual, name), getattr(expected, name)) for name in COUNTS]
    return [f"{name}: {sum(a)}, and {sum(b)} by the other" for name, a, b in counts if a and b and a != b]


def _judge_image(evidence: Evidence, image: int, judgement: Judgement) -> None:
    """Compare one image scale by scale. Effects: on `judgement`."""
    actual_L, expected_L = evidence.actual.tokens_BL[image], evidence.expected.tokens_BL[image]
    wrong, records = None, list[Divergence]()
    for si in evidence.models.pyramid:
        wrong = wrong or _wrong_tensor(evidence, image, si)
        span = evidence.models.pyramid.span(si)
        differ_n = torch.nonzero(actual_L[span] != expected_L[span]).flatten()
        if len(differ_n):
            records = _judge_tokens(evidence, image, si, span.start + differ_n, wrong is None)
            judgement.unclaimed += int((actual_L[span.stop :] != expected_L[span.stop :]).sum())
            break
        wrong = wrong or _wrong_f_hat(evidence, image, si)
    if wrong is not None:
        judgement.defects.append(wrong)
        judgement.wrong_tensors += 1
    for record in records:
        (judgement.ties if record.component == "tie" else judgement.defects).append(record)
        judgement.wrong_tokens += record.component != "tie"


def _wrong_tensor(evidence: Evidence, image: int, si: int) -> Divergence | None:
    """Return the first of input, rows and guided logits that differs by more than two right decoders may."""
    one, other = evidence.actual.intermediates, evidence.expected.intermediates
    if one is None or other is None:
        return None
    span, B = evidence.models.pyramid.span(si), evidence.request.B
    allowed = evidence.allowance(si)
    x = float(other.x_RLD[:, span].nan_to_num().abs().max())
    x_error = max(2 * allowed.f_hat, 1e-5) * max(1.0, x)
    errors = {"x_RLD": x_error, "rows_RLV": 2 * evidence.budget.rows, "guided_BLV": 2 * allowed.logits}
    for name, error in errors.items():
        rows = [image] if name == "guided_BLV" else [image, B + image]
        far = _distance(getattr(one, name)[rows, span], getattr(other, name)[rows, span])
        if far > error:
            detail = f"{name} of scale {si} differs by {far:.3g}, rounding explains {error:.2g}"
            return _at(evidence, PARTS[name], detail, image, si)
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


def _judge_tokens(evidence: Evidence, image: int, si: int, position_n: Tensor, may_tie: bool) -> list[Divergence]:
    """Record tokens that differ: a tie where the logits agree and the race between the two is within rounding."""
    allowed, expected = evidence.allowance(si).logits, evidence.expected.intermediates
    bound, row_n = margin_bound(allowed), torch.full_like(position_n, image)
    tokens_2n = torch.stack([side.tokens_BL[row_n, position_n] for side in (evidence.actual, evidence.expected)])
    margin_n = torch.full(position_n.shape, torch.nan, dtype=torch.float64, device=position_n.device)
    if expected is not None and may_tie:
        exact_nV, E_nV = expected.guided_BLV[row_n, position_n], None
        if not evidence.greedy:
            noise = evidence.numbers
            noise.labels(evidence.models.target.config.classes)  # drawn before all numbers
            E_nV = exponentials(noise, evidence.models.pyramid, row_n, position_n)
        allowed_n = torch.full_like(margin_n, allowed)
        one_n, other_n = (
            margins_of_differing_tokens(exact_nV, E_nV, token_n, evidence.request, allowed_n).margin_N
            for token_n in tokens_2n
        )
        margin_n = torch.where(torch.isfinite(exact_nV).all(1), torch.maximum(one_n, other_n), torch.nan)
    records = []
    columns = (position_n.tolist(), *tokens_2n.tolist(), margin_n.tolist())
    for position, actual, other, margin in zip(*columns, strict=True):
        component, detail = "draw", "the logits agree, and the tokens differ"
        if math.isnan(margin):
            component, detail = "token", "the tokens differ"
        elif margin <= bound:
            component, detail = "tie", "rounding decides between the two"
        place = _at(evidence, component, detail, image, si)
        records.append(replace(place, position=position, actual=actual, expected=other, margin=margin, bound=bound))
    return records
