"""f_hat and next inputs for the speculative side. Promise: pure; the caller decides what is committed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from harness.models.quantizer import Quantizer
from harness.protocol.pyramid import ScalePyramid


def accumulate(f_hat_BCPP: Tensor, idx_Bl: Tensor, si: int, quantizer: Quantizer, pyramid: ScalePyramid) -> Tensor:
    """Return f_hat after scale `si` with tokens `idx_Bl` (spec §3)."""
    h_BCPP = quantizer.codes(idx_Bl, pyramid.patch_nums[si])
    if si != pyramid.S - 1:
        h_BCPP = F.interpolate(h_BCPP, (pyramid.P, pyramid.P), mode="bicubic")
    return f_hat_BCPP + quantizer.phi(h_BCPP, si, pyramid.S)


def next_input(f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    """Return raw_BlC, the raw input of scale `si`, from f_hat after the scales before it."""
    side = pyramid.patch_nums[si]
    return F.interpolate(f_hat_BCPP, (side, side), mode="area").flatten(2).mT
