"""Attention masks as the spec page reads (§5). Promise: 0 where attention is allowed, -inf elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.errors import InputError
from harness.protocol.pyramid import ScalePyramid

HAND_OFF_MASKS = range(6)  # sd_mask; 0 feeds no prefix and has no mask


def block_causal(pyramid: ScalePyramid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return mask_11LL: position i may attend to position j iff level(i) >= level(j)."""
    level_L = torch.tensor(pyramid.levels(), device=device)
    return _additive(level_L[:, None] >= level_L[None, :], dtype)


def hand_off_mask(pyramid: ScalePyramid, entry: int, sd_mask: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return mask_11nn of the hand-off pass over positions 0..end(entry)-1 = n-1.

    Args:
        pyramid: scales.
        entry: first scale of the target, 0..S-1.
        sd_mask: 1 "self"; 2 "self", but rows of the entry scale see all; 3 block-causal; 4 "block"; 5 "block", but rows
            of the entry scale see all.
        device: of the result.
        dtype: of the result.

    Raises:
        InputError: sd_mask outside 1..5.

    Source: spec §5 and §8.
    """
    n = pyramid.end(entry)
    level_n = torch.tensor(pyramid.levels()[:n], device=device)
    position_n = torch.arange(n, device=device)
    same_nn = level_n[:, None] == level_n[None, :]
    if sd_mask in (1, 2):  # "self": any earlier position of another level, and the position itself
        earlier_nn = position_n[None, :] <= position_n[:, None]
        allowed_nn = (earlier_nn & ~same_nn) | (position_n[:, None] == position_n[None, :])
    elif sd_mask == 3:
        allowed_nn = level_n[:, None] >= level_n[None, :]
    elif sd_mask in (4, 5):  # "block": the position's own level
        allowed_nn = same_nn
    else:
        raise InputError("sd_mask", sd_mask, "must lie in 1..5 to have a mask", "pass sd_mask 3 for block-causal")
    if sd_mask in (2, 5):
        allowed_nn = allowed_nn | (level_n == entry)[:, None]
    return _additive(allowed_nn, dtype)


def _additive(allowed_nn: Tensor, dtype: torch.dtype) -> Tensor:
    mask_nn = torch.zeros(allowed_nn.shape, device=allowed_nn.device, dtype=dtype)
    return mask_nn.masked_fill(~allowed_nn, float("-inf"))[None, None]
