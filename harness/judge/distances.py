"""How far images are from those of sequential decoding. Promise: measured, never judged."""

from __future__ import annotations

import torch

from harness.judge.verdict import Distance
from harness.models.pair import ModelPair
from harness.protocol.trace import Trace


@torch.inference_mode()
def distances(models: ModelPair, actual: Trace, expected: Trace) -> list[Distance]:
    """Return how far every image is from the other trace's."""
    tokens_B = (actual.tokens_BL != expected.tokens_BL).double().mean(1)
    f_hat_B = (actual.f_hat_BCPP - expected.f_hat_BCPP).abs().double().flatten(1).mean(1)
    pixels_B = (models.vae.decode(actual.f_hat_BCPP) - models.vae.decode(expected.f_hat_BCPP)).abs().double()
    rows = zip(tokens_B.tolist(), f_hat_B.tolist(), pixels_B.flatten(1).mean(1).tolist(), strict=True)
    return [Distance(*row) for row in rows]
