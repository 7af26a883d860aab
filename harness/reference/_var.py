"""What sampling does with a network of VAR, one scale at a time, as the spec page reads.

Promise: pure functions; arguments are never written into. The module of this name in `speculative/` keeps the same
contracts, a window of scales at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models import Condition, ModelPair, Network
from harness.models.var.quantizer import Quantizer
from harness.protocol import Request, ScalePyramid


def guidance_labels(labels_B: Tensor, classes: int) -> Tensor:
    """Return labels_R: the conditional rows, then the unconditional ones."""
    return torch.cat((labels_B, torch.full_like(labels_B, classes)))


def condition(network: Network, request: Request, labels_B: Tensor) -> Condition:
    """Return the condition of the guidance rows of some images, whose classes are `labels_B`."""
    return network.condition(guidance_labels(labels_B, network.config.classes))


def scale_input(network: Network, condition: Condition, raw_BlC: Tensor | None, si: int) -> Tensor:
    """Return the network's input x_RlD of scale `si` (spec §4); `raw_BlC` is the resized f_hat, None at scale 0."""
    lvl_pos_lD = network.lvl_SD[si] + network.pos_LD[network.pyramid.span(si)]
    if raw_BlC is None:
        return condition.cond_RD[:, None] + network.start_1D + lvl_pos_lD
    x_BlD = network.embed(raw_BlC) + lvl_pos_lD
    return torch.cat((x_BlD, x_BlD))  # the same input for both guidance halves


def positions(network: Network, first: int, last: int) -> Tensor | None:
    """Return nothing: the input holds the position term."""
    return None


def guide(logits_RlV: Tensor, cfg: float, si: int, S: int) -> Tensor:
    """Return (1+t)·conditional − t·unconditional, t = cfg·ramp (spec §7). Raises `InputError` for odd rows."""
    R = logits_RlV.shape[0]
    if R % 2 != 0:
        raise InputError("guidance rows", R, "must be 2B: conditional, then unconditional", "pass both halves")
    B = R // 2
    t = cfg * si / (S - 1) if S > 1 else 0.0
    return (1 + t) * logits_RlV[:B] - t * logits_RlV[B:]


def smooth_codes(logits_BlV: Tensor, E_BlV: Tensor, codebook_VC: Tensor, ramp: float) -> Tensor:
    """Return the soft code vectors (B,l,C) of `more_smooth`, of filtered logits; E is the scale's second one, E'."""
    tau = max(0.27 * (1 - 0.95 * ramp), 0.005)
    G_BlV = -E_BlV.log()
    weights_BlV = ((logits_BlV * (1 + ramp) + G_BlV) / tau).softmax(-1)
    return weights_BlV @ codebook_VC


def accumulate(f_hat_BCPP: Tensor, codes_BCpp: Tensor, si: int, quantizer: Quantizer, pyramid: ScalePyramid) -> Tensor:
    """Return f_hat after scale `si`, whose code vectors are `codes_BCpp` (spec §3)."""
    if si < pyramid.S - 1:
        codes_BCpp = F.interpolate(codes_BCpp, size=(pyramid.P, pyramid.P), mode="bicubic")
    return f_hat_BCPP + quantizer.phi(codes_BCpp, si, pyramid.S)


def next_input(f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    """Return the raw input (B, pn², C) of scale `si` from f_hat after scale si-1."""
    pn = pyramid.patch_nums[si]
    return F.interpolate(f_hat_BCPP, size=(pn, pn), mode="area").flatten(2).transpose(1, 2)


def example(models: ModelPair, images: int, seed: int) -> Request:
    """Return a request such as error budgets are measured with."""
    return Request(tuple((seed + k) % models.target.config.classes for k in range(images)), seed)
