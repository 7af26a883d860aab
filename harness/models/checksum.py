"""A checksum of weights, to see that nobody wrote into them.

Promise: a change of any one number, by however little, changes the sum of its tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksums(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the checksum of every tensor by name.

    Bits as integers, each times an odd number of its own, summed modulo 2^64: an odd factor hides no difference. On the
    tensors' device, since the bytes of a large network would take longer to travel than to add.
    """
    found = {}
    for name, weight in weights.items():
        bits = weight.detach().contiguous().flatten().view(BITS[weight.itemsize]).long()
        odd = torch.arange(1, 2 * len(bits), 2, device=bits.device)
        found[name] = int((bits * odd).sum())
    return found
