"""Laws of guidance: 2B rows, conditional half first, and a weight that grows with the scale."""

from dataclasses import replace

import torch

from harness.errors import HarnessError
from harness.judge import Broken
from harness.laws._case import Case
from harness.laws._law import (
    EVERY,
    FLOAT64,
    KEEPS_AN_EQUAL,
    NotOffered,
    Subject,
    law,
    require_accepted_whole,
    require_equal,
    shown_tensors,
)
from harness.laws._oracle import allowed, needs_exact, require_draws, targeted
from harness.protocol import Contract, ScaleGuidance

_THIRD = 1 / 3  # no decimal, and nothing that float32 holds


def _rows(case: Case, n: int) -> torch.Tensor:
    return case.normal(2 * case.B, n, case.V)


def _window(case: Case, first: int, last: int) -> torch.Tensor:
    """Return rows of every draw of some scales."""
    return _rows(case, case.pyramid.draws.end(last) - case.pyramid.draws.begin(first))


@law("guidance.formula", "guide")
def formula(subject: Subject, case: Case) -> bool:
    """guided = (1+t)·conditional − t·unconditional, t = cfg·si/(S-1), conditional half first."""
    parts = subject.parts(case, "guide")
    for pyramid, first, last in case.every_window:
        rows_RnV = _rows(case, pyramid.draws.end(last) - pyramid.draws.begin(first))
        scales = rows_RnV.split(pyramid.draws.counts[first : last + 1], 1)
        for cfg in (case.cfg, case.cfg + _THIRD):
            guidance = case.guidance(cfg, pyramid)
            expected = [case.steps.guide(rows, guidance, first + k, pyramid.S) for k, rows in enumerate(scales)]
            actual = parts.guide(rows_RnV.clone(), pyramid, guidance, first, last)
            require_equal("guided", actual, torch.cat(expected, 1), f"cfg {cfg}, window {first}..{last}", FLOAT64)
    return case.pyramid.S > 1


@law("guidance.off", "guide")
def off(subject: Subject, case: Case) -> bool:
    """cfg = 0, and any cfg at scale 0, give the conditional logits to the bit."""
    parts, pyramid = subject.parts(case, "guide"), case.pyramid
    guidance = case.guidance(case.cfg or 1.0, pyramid)
    if isinstance(guidance, ScaleGuidance):  # a scale may be off among others that are on
        off = [si for si in pyramid if guidance.weights[si] == 1]
        for si in off:
            rows_RlV, plain = _window(case, si, si), replace(guidance, temperatures=())
            actual = parts.guide(rows_RlV.clone(), pyramid, plain, si, si)
            require_equal("guided", actual, rows_RlV[: case.B], f"scale {si}, weight 1")
        if not off:
            raise NotOffered("guidance by scale that is on at all scales")
        return True
    for first, last in case.windows:
        rows_RnV = _window(case, first, last)
        actual = parts.guide(rows_RnV.clone(), pyramid, 0.0, first, last)
        require_equal("guided", actual, rows_RnV[: case.B], f"cfg 0, window {first}..{last}")
    rows_R1V = _rows(case, 1)
    actual = parts.guide(rows_R1V.clone(), pyramid, case.cfg, 0, 0)
    require_equal("guided", actual, rows_R1V[: case.B], "scale 0")
    return True


@law("guidance.refusal", "guide")
def refusal(subject: Subject, case: Case) -> bool:
    """An odd number of guidance rows is refused."""
    parts = subject.parts(case, "guide")
    odd_RnV = _window(case, 0, 0)[:-1]
    if case.B == 1:
        odd_RnV = _window(replace(case, labels=(0, 0)), 0, 0)[:3]
    try:
        actual = parts.guide(odd_RnV, case.pyramid, case.guidance(case.cfg or 1.0, case.pyramid), 0, 0)
    except (HarnessError, ValueError):
        return True
    raise Broken(f"{len(odd_RnV)} rows were taken for 2B and gave {tuple(actual.shape)}")


@law("guidance.unconditional", "decode", "guide", "condition", contract=Contract.LAW, policies=EVERY)
def unconditional(subject: Subject, case: Case) -> bool:
    """The unconditional label gives the same image for every cfg."""
    # both halves are equal then, so that guidance has nothing to say
    case = replace(case, labels=(3,) * case.B)
    tokens_BL = subject.decode(case).tokens_BL
    for cfg in (0.0, 4.0):
        other_BL = subject.decode(replace(case, cfg=cfg)).tokens_BL
        request, where = replace(case, cfg=cfg).request, f"unconditional label, cfg {cfg} against {case.cfg}"
        require_draws(case, request, other_BL, tokens_BL, where)
    return case.pyramid.S > 1


@law("guidance.both-sides", "guide", "draft_generate_batch", contract=Contract.LAW, policies=KEEPS_AN_EQUAL)
def _both_sides(subject: Subject, case: Case) -> bool:
    """Draft and target are guided at the same scale index: a draft = target is accepted whole."""
    needs_exact(case, "rounding decides whether a draft = target is accepted whole")
    require_accepted_whole(subject.decode(replace(case, draft="identical", cfg=max(case.cfg, 2.0))), "guided")
    return case.pyramid.S > 1


@law("guidance.trace", "decode", "guide")
def _weights(subject: Subject, case: Case) -> bool:
    """The guided logits of a decode are the formula over its own rows."""
    # for a guidance value that is no short decimal
    case = replace(case, cfg=case.cfg + _THIRD)
    decoded = subject.decode(case)
    shown = shown_tensors(decoded)
    for si in case.pyramid:
        span, images = case.pyramid.draws.span(si), targeted(decoded, case.B, si)
        if not images:
            continue
        rows_RlV = shown.rows_RLV[case.request.rows_of(*images), span]
        expected = case.steps.guide(rows_RlV, case.request.guidance, si, case.pyramid.S)
        require_equal("guided", shown.guided_BLV[images, span], expected, f"scale {si}", allowed(case).guided)
    return case.cfg != 0 and case.pyramid.S > 1
