"""Planted bugs of guidance: other halves, other weights, other scales."""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.decoders import Factory
from harness.errors import InputError
from harness.mutants._mutant import Alone, Mutant, asked_for, parts, passed
from harness.protocol.pyramid import ScalePyramid


def _guide(
    rule: Callable[[Tensor, Tensor, Tensor, float], Tensor] = lambda c, u, t, cfg: (1 + t) * c - t * u,
    ramp: Callable[[ScalePyramid, int, int], float] = lambda pyramid, si, first: pyramid.ramp(si),
) -> Factory:
    """Plant a rule (conditional, unconditional, t_n1, cfg) -> guided, or t/cfg of a scale in a window from `first`."""

    def guide(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
        if len(rows_RnV) % 2:
            raise InputError("guidance rows", len(rows_RnV), "must be 2B", "pass both halves")
        t = [cfg * ramp(pyramid, si, first) for si in range(first, last + 1) for _ in range(pyramid.tokens(si))]
        t_n1 = torch.tensor(t, device=rows_RnV.device, dtype=rows_RnV.dtype)[:, None]
        conditional_BnV, unconditional_BnV = rows_RnV.chunk(2)
        return rule(conditional_BnV, unconditional_BnV, t_n1, cfg)

    return parts(guide=guide)


def guide_rows(change: Callable[[Tensor], Tensor]) -> Factory:
    """Plant a bug in the rows that are guided."""
    return passed(guide=lambda rows_RnV, *window: (change(rows_RnV), *window))


# fmt: off
SWAPPED = Mutant("guidance.swapped", "unconditional half first", "the order of another code base",
    guide_rows(lambda rows_RnV: rows_RnV.roll(len(rows_RnV) // 2, 0)), component="guidance")
WINDOW_WEIGHT = Mutant("guidance.window-weight", "a whole window gets its first scale's weight",
    "one t a pass, right while a pass was one scale", _guide(ramp=lambda pyramid, si, first: pyramid.ramp(first)))
RELATIVE = Mutant("guidance.relative", "scales are counted from the window's first one",
    "the loop's index taken for the scale's", _guide(ramp=lambda pyramid, si, first: pyramid.ramp(si - first)))
SHORT_RAMP = Mutant("guidance.short-ramp", "t = cfg·si/S", "off by one, to save a case for S = 1",
    _guide(ramp=lambda pyramid, si, first: si / pyramid.S))
UNBALANCED = Mutant("guidance.unbalanced", "(1+t)·conditional − cfg·unconditional", "a ramp added to one of two terms",
    _guide(lambda c, u, t, cfg: (1 + t) * c - cfg * u))
FORGOTTEN = Mutant("guidance.forgotten", "(1+t)·conditional", "the second half dropped to save memory",
    _guide(lambda c, u, t, cfg: (1 + t) * c))
DIFFERENCE = Alone("guidance.difference", "unconditional + (1+t)·(conditional − unconditional)",
    "the textbook form, which rounds where t = 0 must not", _guide(lambda c, u, t, cfg: u + (1 + t) * (c - u)))
ODD = Alone("guidance.odd", "an odd row is dropped", "integer division of the number of rows",
    guide_rows(lambda rows_RnV: rows_RnV[: len(rows_RnV) // 2 * 2]))
PADDED = Alone("guidance.padded", "an odd row stands for both halves", "padding where an error is expected",
    guide_rows(lambda rows_RnV: torch.cat((rows_RnV, rows_RnV[-1:])) if len(rows_RnV) % 2 else rows_RnV))
ROUNDED = Mutant("guidance.rounded", "the guidance value is rounded to a tenth", "a slider of a user interface",
    asked_for(cfg=lambda request: round(request.cfg, 1)))
PRINTED = Mutant("guidance.printed", "the guidance value has three digits", "a number that was passed on as text",
    asked_for(cfg=lambda request: float(f"{request.cfg:.3g}")))
NARROW_WEIGHTS = Mutant("guidance.narrow-weights", "weights are float32, whatever the logits are",
    "a tensor of weights made with the default dtype",
    _guide(lambda c, u, t, cfg: (1 + t).float().to(c.dtype) * c - t.float().to(u.dtype) * u), component="guidance")
NARROW_RAMP = Mutant("guidance.narrow-ramp", "the share of a scale is float32, whatever the logits are",
    "a ramp by linspace", _guide(ramp=lambda pyramid, si, first: float(torch.tensor(pyramid.ramp(si)))),
    component="guidance")
