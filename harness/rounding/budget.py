"""How far rounding alone may move a correct decoder's logits and f_hat.

Promise: a budget is measured on the plain reference, in the run's dtype and device against float64 on the same tokens;
never on the decoder under test, so that a bug cannot excuse itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.models.pair import ModelPair
from harness.protocol.noise import SeededNoise
from harness.protocol.request import Request
from harness.reference import cachefree, sequential

# Other kernels (other window, batch or mask) round differently. On the digits pair (CPU, float32), all 55 windows of
# scales, prefix cached scale by scale or in one pass, four requests of 1, 2, 5 and 1 images (cfg 1.5 and 4): these
# 400 passes stayed within 1.18 times the error of the two shapes measured here. The factor leaves room for devices.
SAFETY = 4.0
# float32 has 24 bits: the floor keeps a budget above one rounding of the largest logit or f_hat met.
ROUNDING = 2.0**-23


@dataclass(frozen=True)
class Budget:
    """Largest distance of a correct decoder from float64, absolute.

    Args:
        logits: of guided logits, any one of them.
        logits_rms: of guided logits, root mean square over one scale of one image. In bfloat16 the largest error is
            far from the usual one, and only the mean tells a wrong mask from rounding.
        f_hat: of f_hat.
        source: how it was measured.
    """

    logits: float
    logits_rms: float
    f_hat: float
    source: str


@torch.inference_mode()
def calibrate(models: ModelPair, request: Request) -> Budget:
    """Measure the budget of this target, request, device and dtype.

    Two plain computations of the same rows, one pass a scale with a cache and one masked pass over everything, are
    compared with the cache-free one in float64; the larger error times `SAFETY` is the budget.

    Args:
        models: in the dtype and on the device of the run.
        request: its first two labels, seed, guidance and filter are used.
    """
    pyramid = models.pyramid
    labels = (request.labels or (0, 1))[:2]
    request = replace(request, labels=labels, images=None, order="image", more_smooth=False)
    noise = SeededNoise(request, pyramid, models.target.config.V, models.device)
    run = sequential.sample(models.target, models.vae, request, noise)
    assert run.intermediates is not None
    labels_B, tokens_BL = noise.labels(models.target.config.classes), run.tokens_BL
    wide = models.to(models.device, torch.float64)
    _, exact, f_hats = cachefree.teacher_forced(wide.target, wide.vae, request.cfg, labels_B, tokens_BL, pyramid.S)
    _, masked, _ = cachefree.teacher_forced(models.target, models.vae, request.cfg, labels_B, tokens_BL, pyramid.S)
    passes = (run.intermediates.guided_BLV, masked)
    logits = max(_error(guided, exact) for guided in passes)
    spans = [pyramid.span(si) for si in pyramid]
    rms = max(float(_rms(guided[:, span], exact[:, span]).max()) for guided in passes for span in spans)
    # teacher_forced lists f_hat before scales 0..S-1, the run lists it after them
    f_hat = _error(run.intermediates.f_hat_SBCPP[:-1], f_hats[1:])
    logits = max(logits, ROUNDING * float(exact.abs().max()))
    rms = max(rms, ROUNDING * float(_rms(exact, torch.zeros_like(exact)).max()))
    f_hat = max(f_hat, ROUNDING * max(1.0, float(run.intermediates.f_hat_SBCPP.abs().max())))
    dtype = str(models.target.dtype).removeprefix("torch.")
    source = f"{SAFETY:g} × the reference's own error against float64 ({models.device.type}, {dtype}, {models.name})"
    return Budget(SAFETY * logits, SAFETY * rms, SAFETY * f_hat, source)


def _rms(actual_BnV: Tensor, exact_BnV: Tensor) -> Tensor:
    return (actual_BnV.double() - exact_BnV).square().mean((1, 2)).sqrt()


def _error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).abs().max()) if actual.numel() else 0.0
