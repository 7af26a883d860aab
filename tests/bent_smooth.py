"""Planted bugs of `more_smooth`: what a sampler's own `smooth_codes`, `choose` or `SMOOTH` is replaced by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.protocol._request import Request
from harness.protocol.noise import TOKEN, Noise
from harness.reference import _steps as steps
from harness.reference import _var as var


def with_tau(tau: Callable[[float], float], power: int = 1) -> Callable[..., Tensor]:
    """Soft codes with another τ; with power 0 without the ramp of the logits."""

    def smooth_codes(logits_BlV: Tensor, E_BlV: Tensor, codebook_VC: Tensor, ramp: float) -> Tensor:
        score_BlV = logits_BlV * (1 + ramp) ** power - E_BlV.log()
        return (score_BlV / tau(ramp)).softmax(-1) @ codebook_VC

    return smooth_codes


def right_tau(ramp: float) -> float:
    return max(0.27 * (1 - 0.95 * min(1.0, max(0.0, ramp))), 0.005)


def wrong_row(logits_BlV: Tensor, E_BlV: Tensor, codebook_VC: Tensor, ramp: float) -> Tensor:
    return var.smooth_codes(logits_BlV, E_BlV, codebook_VC.roll(1, 0), ramp)


def unfiltered(
    guided_BlV: Tensor, request: Request, noise: Noise, si: int, greedy: bool = False
) -> tuple[Tensor, Tensor]:
    """The filter comes after the soft choice: it sees all codes."""
    return guided_BlV, steps.draw(
        steps.filter_logits(guided_BlV, request.top_k, request.top_p), noise.exponential(si, TOKEN, "reference")
    )


def noise_first(
    guided_BlV: Tensor, request: Request, noise: Noise, si: int, greedy: bool = False
) -> tuple[Tensor, Tensor]:
    """G joins the logits before the filter, which then keeps other codes."""
    G_BlV = -noise.exponential(si, "smooth", "reference").log() if request.more_smooth else 0.0
    kept_BlV = steps.filter_logits(guided_BlV + G_BlV, request.top_k, request.top_p).isfinite()
    _, idx_Bl = unfiltered(guided_BlV, request, noise, si)
    return guided_BlV.masked_fill(~kept_BlV, -torch.inf), idx_Bl


SOFT_BUGS: dict[str, dict[str, object]] = {
    "τ of the scale before": {"smooth_codes": with_tau(lambda ramp: right_tau(ramp - 1 / 9))},
    "τ of the scale behind": {"smooth_codes": with_tau(lambda ramp: right_tau(ramp + 1 / 9))},
    "τ of the last scale": {"smooth_codes": with_tau(lambda ramp: 0.0135)},
    "τ that leaves nothing soft": {"smooth_codes": with_tau(lambda ramp: 1e-3)},
    "logits without their ramp": {"smooth_codes": with_tau(right_tau, power=0)},
    "wrong codebook row": {"smooth_codes": wrong_row},
    "another stream": {"SMOOTH": TOKEN},
    "no filter": {"choose": unfiltered},
    "G before the filter": {"choose": noise_first},
}
