"""The verify mask. Promise: rows of scales first..last, columns of everything up to end(last), block-causal."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from harness.protocol.pyramid import ScalePyramid


@lru_cache(maxsize=256)  # a window's mask is read in every round; tensors are shared, so callers must not write
def attention_mask(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the additive mask (1,1,n,K+n): n rows of scales first..last, K columns of the scales before.

    Source: spec §5.
    """
    K, end = pyramid.begin(first), pyramid.end(last)
    mask_nK = torch.full((end - K, end), float("-inf"), device=device, dtype=dtype)
    for si in range(first, last + 1):
        mask_nK[pyramid.begin(si) - K : pyramid.end(si) - K, : pyramid.end(si)] = 0.0
    return mask_nK[None, None]
