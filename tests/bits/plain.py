"""What the reference does with the toy family: what a module of `harness/reference` would hold."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models import ModelPair
from harness.models.network import Condition, Network
from harness.protocol import Request, ScaleGuidance
from harness.protocol._request import Rows
from harness.protocol.pyramid import ScalePyramid
from harness.reference import FamilySteps

TEXTS = (
    Rows.of([[0.5, -1.0, 0.25, 1.5, -0.5], [1.0, 0.0, -1.5, 0.5, 0.75]]),
    Rows.of([[-1.25, 0.5, 1.0, -0.25, 0.5]]),
    Rows.of([[0.0, 1.0, 0.5, -1.0, -1.5], [-0.5, -0.75, 1.25, 1.0, 0.25]]),
)


def condition(network: Network, request: Request, labels_B: Tensor) -> Condition:
    """Unconditional rows have as many rows as the text beside them; the label after the last text is unconditional."""
    if not request.texts or not isinstance(request.guidance, ScaleGuidance):
        raise InputError("texts", len(request.texts), "bits are drawn of texts, and guided by scale", "pass both")
    nothing = network.weights["nothing"]
    texts: list[Tensor] = []
    for label in labels_B.tolist():
        texts.append(nothing if label == len(request.texts) else request.texts[label].numbers_TA)
    unconditional = [nothing[: len(text_TA)] for text_TA in texts] if request.guidance.guided else []
    return network.condition(texts + unconditional)


def scale_input(network: Network, condition: Condition, raw_BlC: Tensor | None, si: int) -> Tensor:
    if raw_BlC is None:
        return (condition.cond_RD + network.start_1D)[:, None] + network.lvl_SD[0]
    x_BlD = network.embed(raw_BlC) + network.lvl_SD[si]
    return torch.cat([x_BlD] * (len(condition.cond_RD) // len(x_BlD)))


def positions(network: Network, first: int, last: int) -> Tensor:
    """Row and column of the finest grid, rounded half to even."""
    H, W = network.pyramid.sides[-1]
    where = []
    for si in range(first, last + 1):
        h, w = network.pyramid.sides[si]
        where += [(round(Fraction(y * H, h)), round(Fraction(x * W, w))) for y in range(h) for x in range(w)]
    return torch.tensor(where, device=network.device, dtype=torch.float64)


def guide(rows_RlV: Tensor, guidance: Any, si: int, S: int) -> Tensor:
    z_RlV = rows_RlV * (1 / guidance.temperature(si))
    if not guidance.guided:
        return z_RlV
    if len(rows_RlV) % 2:
        raise InputError("guidance rows", len(rows_RlV), "must be 2B", "pass both halves")
    w, B = guidance.weights[si], len(rows_RlV) // 2
    return w * z_RlV[:B] + (1 - w) * z_RlV[B:]


def accumulate(f_hat: Tensor, codes_BChw: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    if si < pyramid.S - 1:
        codes_BChw = F.interpolate(codes_BChw, size=pyramid.sides[-1], mode="bilinear")
    return f_hat + codes_BChw


def next_input(f_hat: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    return F.interpolate(f_hat, size=pyramid.sides[si], mode="bilinear").flatten(2).transpose(1, 2)


def guidance_of(cfg: float, pyramid: ScalePyramid) -> ScaleGuidance:
    """Return weights that grow from 1 on, and temperatures that differ."""
    weights = tuple(1 + cfg * (si + 1) / pyramid.S for si in pyramid)
    return ScaleGuidance(weights, tuple(1.0 + 0.25 * (si % 3) for si in pyramid))


def example(models: ModelPair, images: int, seed: int) -> Request:
    labels = tuple((seed + k) % len(TEXTS) for k in range(images))
    return Request(labels, seed, texts=TEXTS, scale_guidance=guidance_of(1.5, models.pyramid))


BITS = FamilySteps(condition, scale_input, positions, guide, accumulate, next_input, "bilinear", example)
