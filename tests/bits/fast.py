"""What the decoder does with the toy family: what a module of `harness/speculative` would hold."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models.network import Condition, Network
from harness.protocol import Request, ScaleGuidance
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import parts


def condition_rows(network: Network, request: Request, labels_B: Tensor) -> Condition:
    if not request.texts or not isinstance(request.guidance, ScaleGuidance):
        raise InputError("texts", len(request.texts), "bits are drawn of texts, and guided by scale", "pass both")
    nothing_TA = network.weights["nothing"]
    given = [*(rows.numbers_TA for rows in request.texts), nothing_TA]
    own = [given[label] for label in labels_B.tolist()]
    if len(own) < request.R:
        own += [nothing_TA[: len(text_TA)] for text_TA in own]
    return network.condition(own)


def build_combined_query(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    counts = torch.tensor(network.pyramid.counts[first : last + 1], device=network.device)
    x_BnD = network.embed(raw_BnC) + network.lvl_SD[first : last + 1].repeat_interleave(counts, 0)
    x_RnD = x_BnD.repeat(len(condition.cond_RD) // len(x_BnD), 1, 1)
    if first == 0:
        x_RnD[:, 0] = condition.cond_RD + network.start_1D + network.lvl_SD[0]
    return x_RnD


@lru_cache(maxsize=256)
def _where(pyramid: ScalePyramid, first: int, last: int, device: torch.device) -> Tensor:
    (H, W), scales = pyramid.sides[-1], []
    for h, w in pyramid.sides[first : last + 1]:
        y_h = (torch.arange(h, dtype=torch.float64) * (H / h)).round()  # half to even
        x_w = (torch.arange(w, dtype=torch.float64) * (W / w)).round()
        scales.append(torch.stack(torch.meshgrid(y_h, x_w, indexing="ij"), -1).flatten(0, 1))
    return torch.cat(scales).to(device)


def positions(network: Network, first: int, last: int) -> Tensor:
    return _where(network.pyramid, first, last, network.device)


def guide(rows_RnV: Tensor, pyramid: ScalePyramid, guidance: Any, first: int, last: int) -> Tensor:
    if guidance.guided and len(rows_RnV) % 2:
        raise InputError("guidance rows", len(rows_RnV), "must be 2B", "pass both halves")
    counts = pyramid.draws.counts
    scales = [si for si in range(first, last + 1) for _ in range(counts[si])]
    w_n1 = rows_RnV.new_tensor([guidance.weights[si] for si in scales])[:, None]
    tau_n1 = rows_RnV.new_tensor([guidance.temperature(si) for si in scales])[:, None]
    if not guidance.guided:
        return rows_RnV / tau_n1
    conditional_BnV, unconditional_BnV = (rows_RnV / tau_n1).chunk(2)
    return unconditional_BnV + w_n1 * (conditional_BnV - unconditional_BnV)


def accumulate(f_hat: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    codes = quantizer.codes(idx_Bl, *pyramid.sides[si])
    return f_hat + (codes if si == pyramid.S - 1 else F.interpolate(codes, pyramid.sides[-1], mode="bilinear"))


def next_input(f_hat: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    raw_BlC = F.interpolate(f_hat, pyramid.sides[si], mode="bilinear").flatten(2).mT
    return raw_BlC.clone() if pyramid.sides[si] == pyramid.sides[-1] else raw_BlC  # the same sides: f_hat's memory


PARTS = replace(
    parts.PARTS, condition_rows=condition_rows, build_combined_query=build_combined_query, positions=positions,
    guide=guide, accumulate=accumulate, next_input=next_input,
)  # fmt: skip
