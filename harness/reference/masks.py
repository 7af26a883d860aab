"""Attention masks as the spec page reads (§5). Promise: 0 where attention is allowed, -inf elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.pyramid import ScalePyramid


def block_causal(pyramid: ScalePyramid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return mask_11LL: position i may attend to position j iff level(i) >= level(j)."""
    level_L = torch.tensor(pyramid.levels(), device=device)
    forbidden_LL = level_L[:, None] < level_L[None, :]
    mask_LL = torch.zeros(pyramid.L, pyramid.L, device=device, dtype=dtype)
    return mask_LL.masked_fill(forbidden_LL, float("-inf"))[None, None]
