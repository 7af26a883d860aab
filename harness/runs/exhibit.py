"""The tensors around a divergence, kept with a run: what both sides computed there, and the numbers they drew by.

Promise: a bounded size (`MOST_BYTES`), whatever the networks; a plain safetensors block, so that reading it executes
nothing.
"""

from __future__ import annotations

import torch
from safetensors.torch import load, save
from torch import Tensor

from harness.judge.evidence import Evidence
from harness.judge.verdict import Divergence
from harness.protocol.noise import TOKEN

MOST_BYTES = 2**21
MOST_EXHIBITS = 16  # of a run


@torch.inference_mode()
def exhibit(evidence: Evidence, found: Divergence) -> dict[str, Tensor]:
    """Return what both sides computed at the place of a divergence; nothing where it has no place.

    Args:
        evidence: along the decoder's tokens.
        found: the divergence.
    """
    address, request = (found.seed, found.image), evidence.request
    if found.position < 0 or address not in request.addresses:
        return {}
    row, position, pyramid = request.addresses.index(address), found.position, evidence.models.pyramid
    si = pyramid.level_of(position)
    kept = {"tokens_L": torch.stack((evidence.actual.tokens_BL[row], evidence.expected.tokens_BL[row]))}
    for side, trace in (("actual", evidence.actual), ("expected", evidence.expected)):
        if trace.intermediates is not None:
            both = [row, request.B + row]
            kept[f"{side}.x_2D"] = trace.intermediates.x_RLD[both, position]
            kept[f"{side}.rows_2V"] = trace.intermediates.rows_RLV[both, position]
            kept[f"{side}.guided_V"] = trace.intermediates.guided_BLV[row, position]
    if not evidence.greedy:
        kept["E_V"] = evidence.numbers.exponential(si, TOKEN, "judge")[row, position - pyramid.begin(si)]
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in kept.items()}
    return plain if sum(t.numel() * t.itemsize for t in plain.values()) <= MOST_BYTES else {}


def packed(tensors: dict[str, Tensor]) -> bytes:
    """Return an exhibit as bytes."""
    return save(tensors)


def unpacked(block: bytes) -> dict[str, Tensor]:
    """Return the exhibit that `packed` made these bytes of."""
    return load(block)
