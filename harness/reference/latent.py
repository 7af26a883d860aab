"""f_hat and the next scale's input as the spec page reads (§3). Promise: arguments are never written into."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from harness.models.quantizer import Quantizer
from harness.protocol.pyramid import ScalePyramid


def accumulate(f_hat_BCPP: Tensor, codes_BCpp: Tensor, si: int, quantizer: Quantizer, pyramid: ScalePyramid) -> Tensor:
    """Return f_hat after scale `si`, whose code vectors are `codes_BCpp`."""
    if si < pyramid.S - 1:
        codes_BCpp = F.interpolate(codes_BCpp, size=(pyramid.P, pyramid.P), mode="bicubic")
    return f_hat_BCPP + quantizer.phi(codes_BCpp, si, pyramid.S)


def next_input(f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    """Return the raw input (B, pn², C) of scale `si` from f_hat after scale si-1."""
    pn = pyramid.patch_nums[si]
    map_BCpp = F.interpolate(f_hat_BCPP, size=(pn, pn), mode="area")
    return map_BCpp.flatten(2).transpose(1, 2)
