"""Planted losses: decoders that are worse than sequential decoding by one thing each, to see a verdict catch them.

Promise: every one is LOST (docs/quality.md has the figures); what is not the planted thing is sequential decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F

from harness.models import ModelPair
from harness.protocol import Contract, Request, Settings, Trace
from harness.protocol.noise import Noise
from harness.reference.sequential import sample_sequential

BLUR = 0.35  # share of its neighbours' mean in a pixel of the latent map


@dataclass(frozen=True)
class Planted:
    """Sequential decoding with one thing wrong."""

    models: ModelPair  # networks
    # changes what is drawn; the numbers stay those of the request that was asked for
    of_request: Callable[[Request], Request] = lambda request: request
    of_models: Callable[[ModelPair], ModelPair] = lambda models: models  # changes the networks
    of_trace: Callable[[Trace], Trace] = lambda trace: trace  # changes what is returned
    contract: str = Contract.QUALITY.value

    def decode(self, request: Request, noise: Noise) -> Trace:
        """Draw a batch."""
        models, wanted = self.of_models(self.models), self.of_request(request)
        numbers = models.noise(wanted) if wanted != request else noise
        trace = sample_sequential(models.target, models.vae, wanted, numbers)
        return self.of_trace(replace(trace, intermediates=None))


def labels(models: ModelPair, settings: Settings) -> Planted:
    """Draw every image of the label of its neighbour in the batch."""
    return Planted(models, of_request=lambda r: replace(r, labels=(*(r.labels or ())[1:], *(r.labels or ())[:1])))


def unguided(models: ModelPair, settings: Settings) -> Planted:
    """Draw with cfg 0."""
    return Planted(models, of_request=lambda request: replace(request, cfg=0.0))


def phi(models: ModelPair, settings: Settings) -> Planted:
    """Smooth every scale by the φ of the first one."""
    return Planted(models, of_models=_one_phi)


def blur(models: ModelPair, settings: Settings) -> Planted:
    """Mix every pixel of the latent map with the mean of its neighbours."""
    return Planted(models, of_trace=_blurred)


def _one_phi(models: ModelPair) -> ModelPair:
    vae = models.vqvae
    first, *others = vae.config.phi_names()
    weights = dict(vae.weights)
    for name in others:
        for part in ("weight", "bias"):
            weights[f"{name}.{part}"] = weights[f"{first}.{part}"]
    return replace(models, vae=replace(vae, weights=weights))


def _blurred(trace: Trace) -> Trace:
    near = F.avg_pool2d(trace.f_hat_BCPP, 3, 1, 1, count_include_pad=False)
    return replace(trace, f_hat_BCPP=(1 - BLUR) * trace.f_hat_BCPP + BLUR * near)
