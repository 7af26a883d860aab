"""Tensors that differ beyond rounding although the tokens may agree. Promise: the first of every image is placed."""

from __future__ import annotations

from harness.judge.evidence import Evidence
from harness.judge.verdict import Divergence, Found, Wrong


def judge_tensors(evidence: Evidence, wrong: Wrong) -> list[Divergence]:
    """Tensors that differ beyond rounding although the tokens may agree: the first of every image."""
    found = [tensor_divergence(evidence, first, image) for image, first in wrong.items() if first]
    error_B = (evidence.actual.f_hat_BCPP - evidence.expected.f_hat_BCPP).abs().flatten(1).amax(1)
    for image, error in enumerate(error_B.tolist()):
        if not error <= 2 * evidence.budget.f_hat and not wrong[image]:
            last = evidence.models.pyramid.S - 1
            detail, where = "the final f_hat is not that of the decoder's own tokens", evidence.request.where(image)
            found.append(Divergence("f_hat", detail, **where, scale=last, delta_f_hat=error))
    return found


def tensor_divergence(evidence: Evidence, found: Found, image: int) -> Divergence:
    """Place a wrong tensor at its scale's worst position."""
    si, component, detail = found
    a, b = evidence.actual.intermediates, evidence.expected.intermediates
    assert a is not None and b is not None
    span = evidence.models.pyramid.span(si)
    worst_l = (a.guided_BLV[image, span] - b.guided_BLV[image, span]).abs().amax(1)
    position = span.start + int(worst_l.argmax())
    labels = evidence.request.labels
    delta_logits, delta_f_hat = deltas(evidence, image, si, position)
    return Divergence(
        component,
        detail,
        **evidence.request.where(image),
        label=labels[image] if labels else -1,
        scale=si,
        position=position,
        actual=int(evidence.actual.tokens_BL[image, position]),
        expected=int(evidence.expected.tokens_BL[image, position]),
        delta_logits=delta_logits,
        delta_f_hat=delta_f_hat,
    )


def deltas(evidence: Evidence, image: int, si: int, position: int) -> tuple[float, float]:
    """|Δ guided logits| at a position and |Δ f_hat| after its scale; NaN where the decoder exposes neither."""
    a, b = evidence.actual.intermediates, evidence.expected.intermediates
    if a is None or b is None:
        return float("nan"), float("nan")
    logits = float((a.guided_BLV[image, position] - b.guided_BLV[image, position]).abs().max())
    return logits, float((a.f_hat_SBCPP[si, image] - b.f_hat_SBCPP[si, image]).abs().max())
