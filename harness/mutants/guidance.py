"""Planted bugs of guidance: other halves, other weights, other scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.errors import InputError
from harness.mutants._mutant import Mutant, asked_for, parts
from harness.protocol.pyramid import ScalePyramid
from harness.speculative.parts import PARTS


def _guide(combine: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """Make a guidance part of a rule (conditional, unconditional, t_n1, cfg) -> guided."""

    def guide(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
        if len(rows_RnV) % 2:
            raise InputError("guidance rows", len(rows_RnV), "must be 2B", "pass both halves")
        t = [cfg * pyramid.ramp(si) for si in range(first, last + 1) for _ in range(pyramid.tokens(si))]
        t_n1 = torch.tensor(t, device=rows_RnV.device, dtype=rows_RnV.dtype)[:, None]
        conditional_BnV, unconditional_BnV = rows_RnV.chunk(2)
        return combine(conditional_BnV, unconditional_BnV, t_n1, cfg)

    return guide


def _window_weight(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    conditional_BnV, unconditional_BnV = PARTS.guide(rows_RnV, pyramid, 0.0, first, last), rows_RnV.chunk(2)[1]
    t = cfg * pyramid.ramp(first)
    return (1 + t) * conditional_BnV - t * unconditional_BnV


def relative(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    """Count scales from the window's first one: a draft of one scale a pass is never guided."""
    t = [cfg * pyramid.ramp(si - first) for si in range(first, last + 1) for _ in range(pyramid.tokens(si))]
    t_n1 = torch.tensor(t, device=rows_RnV.device, dtype=rows_RnV.dtype)[:, None]
    conditional_BnV, unconditional_BnV = PARTS.guide(rows_RnV, pyramid, 0.0, first, last), rows_RnV.chunk(2)[1]
    return (1 + t_n1) * conditional_BnV - t_n1 * unconditional_BnV


def _short_ramp(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    return PARTS.guide(rows_RnV, pyramid, cfg * (pyramid.S - 1) / pyramid.S, first, last)


def _odd(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    return PARTS.guide(rows_RnV[: len(rows_RnV) // 2 * 2], pyramid, cfg, first, last)


def _padded(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    if len(rows_RnV) % 2:
        rows_RnV = torch.cat((rows_RnV, rows_RnV[-1:]))
    return PARTS.guide(rows_RnV, pyramid, cfg, first, last)


def _swapped(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    return PARTS.guide(rows_RnV.roll(len(rows_RnV) // 2, 0), pyramid, cfg, first, last)


def _narrow_ramp(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    """Round si/(S-1) to single precision, where the networks may have double."""
    ramp = [pyramid.ramp(si) for si in range(first, last + 1) for _ in range(pyramid.tokens(si))]
    t_n1 = cfg * torch.tensor(ramp, device=rows_RnV.device, dtype=torch.float32).to(rows_RnV.dtype)[:, None]
    conditional_BnV, unconditional_BnV = PARTS.guide(rows_RnV, pyramid, 0.0, first, last), rows_RnV.chunk(2)[1]
    return (1 + t_n1) * conditional_BnV - t_n1 * unconditional_BnV


SWAPPED = Mutant("guidance.swapped", "unconditional half first", "the order of another code base",
    parts(guide=_swapped), component="guidance")  # fmt: skip
WINDOW_WEIGHT = Mutant("guidance.window-weight", "a whole window gets its first scale's weight",
    "one t a pass, right while a pass was one scale", parts(guide=_window_weight))  # fmt: skip
RELATIVE = Mutant("guidance.relative", "scales are counted from the window's first one",
    "the loop's index taken for the scale's", parts(guide=relative))  # fmt: skip
SHORT_RAMP = Mutant("guidance.short-ramp", "t = cfg·si/S", "off by one, to save a case for S = 1",
    parts(guide=_short_ramp))  # fmt: skip
UNBALANCED = Mutant("guidance.unbalanced", "(1+t)·conditional − cfg·unconditional", "a ramp added to one of two terms",
    parts(guide=_guide(lambda c, u, t, cfg: (1 + t) * c - cfg * u)))  # fmt: skip
FORGOTTEN = Mutant("guidance.forgotten", "(1+t)·conditional", "the second half dropped to save memory",
    parts(guide=_guide(lambda c, u, t, cfg: (1 + t) * c)))  # fmt: skip
DIFFERENCE = Mutant("guidance.difference", "unconditional + (1+t)·(conditional − unconditional)",
    "the textbook form, which rounds where t = 0 must not",
    parts(guide=_guide(lambda c, u, t, cfg: u + (1 + t) * (c - u))), alone=True)  # fmt: skip
ODD = Mutant("guidance.odd", "an _odd row is dropped", "integer division of the number of rows", parts(guide=_odd),
    alone=True)  # fmt: skip
PADDED = Mutant("guidance.padded", "an _odd row stands for both halves", "padding where an error is expected",
    parts(guide=_padded), alone=True)  # fmt: skip
ROUNDED = Mutant("guidance.rounded", "the guidance value is rounded to a tenth", "a slider of a user interface",
    asked_for(cfg=lambda request: round(request.cfg, 1)))  # fmt: skip
PRINTED = Mutant("guidance.printed", "the guidance value has three digits", "a number that was passed on as text",
    asked_for(cfg=lambda request: float(f"{request.cfg:.3g}")))  # fmt: skip
NARROW_WEIGHTS = Mutant("guidance.narrow-weights", "weights are float32, whatever the logits are",
    "a tensor of weights made with the default dtype",
    parts(guide=_guide(lambda c, u, t, cfg: (1 + t).float().to(c.dtype) * c - t.float().to(u.dtype) * u)),
    component="guidance")  # fmt: skip
NARROW_RAMP = Mutant("guidance.narrow-ramp", "the share of a scale is float32, whatever the logits are",
    "a ramp by linspace", parts(guide=_narrow_ramp), component="guidance")  # fmt: skip
