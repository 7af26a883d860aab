"""Loss in nats: the mean over images of log q/p, with an interval that holds at every number of images at once.

Promise: for images drawn one after the other the interval covers the mean of what they lose in expectation, each given
those before it, with probability `LEVEL`, however often one looks. Labels in turn are no matter, and no image need be
like another. The lower end assumes nothing. The upper end assumes that no image loses more than a tenth of a nat a
token (`MOST_A_TOKEN`) in the mean over its tokens; one that does takes the upper end away.

How: with x >= 0 the loss of an image, any forecast f of it in [0, c] and 0 < λ < 1, the product of
exp(λ·(x − f)/c − ψ(λ)·((x − f)/c)²)·exp(−λ·(E x − f)/c), ψ(λ) = −log(1 − λ) − λ, is a supermartingale, and so is a
mixture over λ; Ville's inequality bounds it. The other side takes f − x, which is at least −c where x <= c.

Laws as near as rounding brings them may be one: they count at the upper end alone.

Where a decoder shows no law there is a lower end alone: the mean log-gain of a gambler whose bets are known before the
image (`harness.judge.gains`) is at most the loss.

Source: Howard, Ramdas, McAuliffe & Sekhon, Annals of Statistics 49 (2021), theorem 4; Fan, Grama & Liu, Electronic
Journal of Probability 20 (2015), lemma 4.1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.judge import HELD, gains
from harness.quality._distances import LEVEL, Estimate

MOST_A_TOKEN = 0.1  # nats
RATES = 0.9 * 2.0 ** -torch.arange(16, dtype=torch.float64)  # λ that are mixed
HALVINGS = 60
NOT_SHOWN = "it shows no law that its tokens are drawn from"


def loss_in_nats(nats_NX: Tensor, draws: int) -> tuple[list[Estimate], str]:
    """Return what a set of images loses at every scale, and, last, over all; and why there is no upper end, if not.

    `nats_NX` are (N, 2S) losses, at least and at most, where laws are shown, else (N, A, S), what every alternative
    wins; an image has `draws`.
    """
    if nats_NX.ndim == 3:
        gain_NT, shift = gains(nats_NX), -math.log(HELD)
        low_T = _lower(gain_NT + shift, draws * MOST_A_TOKEN) - shift
        means, lows = gain_NT.mean(0).tolist(), low_T.clamp_min(0).tolist()
        return [Estimate(*each, math.inf) for each in zip(means, lows, strict=True)], NOT_SHOWN
    lost_NT, upper_NT = (torch.cat((s, s.sum(1, keepdim=True)), 1).double() for s in nats_NX.chunk(2, 1))
    most, why = draws * MOST_A_TOKEN, ""
    if (largest := float(upper_NT[:, -1].max())) > most:
        certain = float(lost_NT[:, -1].max())
        loses = f"{largest:.3g} nats" if certain > most else f"up to {largest:.3g} nats, as far as rounding hides it"
        why = f"an image loses {loses}, and the upper end assumes {most:g} at most"
    return sequence(lost_NT, most, None if why else upper_NT), why


def sequence(lost_NT: Tensor, most: float, upper_NT: Tensor | None) -> list[Estimate]:
    """Return the mean of every column of losses >= 0 and its interval, whose upper end is of `upper_NT` <= `most`."""
    mean_T = lost_NT.mean(0)
    low_T, high_T = _lower(lost_NT, most), torch.full_like(mean_T, torch.inf)
    if upper_NT is not None:
        high_T = upper_NT.mean(0) + _margin(upper_NT, most, (1 - LEVEL) / 2)
    return [Estimate(*each) for each in zip(mean_T.tolist(), low_T.tolist(), high_T.tolist(), strict=True)]


def _lower(lost_NT: Tensor, most: float) -> Tensor:
    """Return the lower ends: the better one of a margin for small losses and one for large ones, half of α each."""
    mean_T = lost_NT.mean(0)
    margins = [_margin(lost_NT, scale, (1 - LEVEL) / 4) for scale in (1.0, most)]
    # an infinite loss was met: the mean is infinite, whatever else
    return torch.where(mean_T.isinf(), mean_T, (mean_T - torch.minimum(*margins)).clamp_min(0))


def _margin(lost_NT: Tensor, scale: float, alpha: float) -> Tensor:
    """Return how far the mean may be from what is expected, on one side, with probability `alpha` at most."""
    n_N1 = torch.arange(len(lost_NT), dtype=torch.float64)[:, None]
    forecast_NT = ((lost_NT.cumsum(0) - lost_NT) / n_N1.clamp_min(1)).clamp(0, scale)
    variance_T = ((lost_NT - forecast_NT) / scale).square().sum(0)
    psi_K = -torch.log1p(-RATES) - RATES
    low_T, high_T = torch.zeros_like(variance_T), (4 + variance_T) * 2.0**20
    for _ in range(HALVINGS):
        middle_T = (low_T + high_T) / 2
        wealth_TK = middle_T[:, None] * RATES - variance_T[:, None] * psi_K - math.log(len(RATES))
        is_above_T = wealth_TK.logsumexp(1) >= -math.log(alpha)
        low_T, high_T = torch.where(is_above_T, low_T, middle_T), torch.where(is_above_T, middle_T, high_T)
    return high_T * scale / len(lost_NT)


def nats_text(estimate: Estimate | None) -> str:
    """Return a loss in nats with its interval, or its lower end where there is no other; ``-`` where there is none."""
    if estimate is None:
        return "-"
    if math.isinf(estimate.high):
        return "infinite" if math.isinf(estimate.low) else f">= {estimate.low:.3g}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def guilty_scale(nats_S: Sequence[Estimate]) -> int:
    """Return the scale that loses most for certain."""
    return max(range(len(nats_S)), key=lambda si: nats_S[si].low)
