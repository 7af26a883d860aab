"""Sequential sampling with a KV cache: the plain reading of spec §7, and the oracle of contract A.

Promise: clarity. One scale after the other, one forward pass a scale, nothing shared with `speculative/`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.models.network import Condition, Network
from harness.models.var.autoencoder import Autoencoder
from harness.protocol import Intermediates, Request, Trace
from harness.protocol.noise import SMOOTH, TOKEN, Noise
from harness.protocol.pyramid import ScalePyramid
from harness.reference._steps import (
    accumulate,
    draw,
    filter_logits,
    guidance_labels,
    guide,
    next_input,
    scale_input,
    smooth_codes,
)


class GrowingCache:
    """Keys and values of all positions so far, one concatenation a step."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        """Append and return all keys and values, (R,H,K+n,c) each."""
        if layer in self.layers:
            k_old, v_old = self.layers[layer]
            k_RHnc, v_RHnc = torch.cat((k_old, k_RHnc), 2), torch.cat((v_old, v_RHnc), 2)
        self.layers[layer] = (k_RHnc, v_RHnc)
        return k_RHnc, v_RHnc


@dataclass(frozen=True)
class Walk:
    """One network as it walks along the scales: the condition of its 2B guidance rows, and a cache of its own."""

    network: Network
    condition: Condition
    cache: GrowingCache

    @classmethod
    def begin(cls, network: Network, labels_B: Tensor) -> Walk:
        """Return a walk that has not begun, for these labels."""
        condition = network.condition(guidance_labels(labels_B, network.config.classes))
        return cls(network, condition, GrowingCache())

    def input(self, raw_BlC: Tensor | None, si: int) -> Tensor:
        """Return x_RlD of scale `si`; no raw input at scale 0."""
        return scale_input(self.network, self.condition, raw_BlC, si)

    def rows(self, x_RlD: Tensor) -> Tensor:
        """Return logits_RlV of one scale that sees its cache and all of itself. Effects: the cache grows."""
        return self.network.logits(self.network.hidden(x_RlD, self.condition, self.cache, None), self.condition)


@dataclass
class Progress:
    """One batch on its way, and all that was computed of it so far, a list item a scale."""

    vae: Autoencoder  # quantiser
    pyramid: ScalePyramid  # scales
    request: Request  # what is drawn
    noise: Noise  # the numbers; read as "reference"
    forced_BL: Tensor | None = None  # tokens that are consumed in place of the drawn ones
    greedy: bool = False  # take the most likely token in place of the draw
    x: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    f_hat: list[Tensor] = field(default_factory=list)

    def raw(self) -> Tensor | None:
        """Return the raw input of the next scale; None at scale 0."""
        return next_input(self.f_hat[-1], len(self.f_hat), self.pyramid) if self.f_hat else None

    def finish_scale(self, x_RlD: Tensor, rows_RlV: Tensor) -> None:
        """Guide, filter, draw and accumulate the next scale, whose inputs and logits these are."""
        request, pyramid, quantizer, si = self.request, self.pyramid, self.vae.quantizer, len(self.rows)
        C, P, pn = self.vae.config.C, pyramid.P, pyramid.patch_nums[si]
        guided_BlV = guide(rows_RlV, request.cfg, si, pyramid.S)
        filtered_BlV, idx_Bl = choose(guided_BlV, request, self.noise, si, self.greedy)
        if request.more_smooth:
            E_BlV = self.noise.exponential(si, SMOOTH, "reference")
            codes_BlC = smooth_codes(filtered_BlV, E_BlV, quantizer.codebook_VC, pyramid.ramp(si))
            codes_BCpp = codes_BlC.mT.reshape(request.B, C, pn, -1)
        else:
            used_Bl = idx_Bl if self.forced_BL is None else self.forced_BL[:, pyramid.span(si)]
            codes_BCpp = quantizer.codes(used_Bl, pn)
        nothing = torch.zeros(request.B, C, P, P, device=rows_RlV.device, dtype=self.vae.dtype)
        before = self.f_hat[-1] if self.f_hat else nothing
        self.x.append(x_RlD)
        self.rows.append(rows_RlV)
        self.guided.append(guided_BlV)
        self.tokens.append(idx_Bl)
        self.f_hat.append(accumulate(before, codes_BCpp, si, quantizer, pyramid))

    def trace(self, seconds: float, target_calls: int, target_rows: int) -> Trace:
        """Return the trace of a batch that has all its scales, with all intermediates; calls and rows an image."""
        B = self.request.B
        return Trace(
            tokens_BL=torch.cat(self.tokens, 1),
            f_hat_BCPP=self.f_hat[-1],
            scale_writes_BS=torch.ones(B, self.pyramid.S, dtype=torch.int64),
            target_calls=[target_calls] * B,
            target_rows=[target_rows] * B,
            intermediates=Intermediates(
                torch.cat(self.x, 1), torch.cat(self.rows, 1), torch.cat(self.guided, 1), torch.stack(self.f_hat)
            ),
            seconds=seconds,
        )


@torch.inference_mode()
def sample_sequential(
    network: Network,
    vae: Autoencoder,
    request: Request,
    noise: Noise,
    forced_BL: Tensor | None = None,
    greedy: bool = False,
) -> Trace:
    """Draw a batch of images sequentially.

    Args:
        network: the transformer that decides every token.
        vae: quantiser.
        request: what to draw.
        noise: the numbers; read as "reference".
        forced_BL: teacher forcing: these tokens are consumed in place of the drawn ones (scale by scale, after the
            draw), while `Trace.tokens_BL` still holds what was drawn.
        greedy: take the most likely token in place of the draw; no numbers are read then.

    Returns:
        A trace with all intermediates.

    Raises:
        InputError: a label or top_k that the network does not have.

    Source: spec §7.
    """
    start = time.perf_counter()
    pyramid, config = network.pyramid, network.config
    request.check_against(config.classes, config.V)
    walk = Walk.begin(network, noise.labels(config.classes))
    progress = Progress(vae, pyramid, request, noise, forced_BL, greedy)
    for si in pyramid:
        x_RlD = walk.input(progress.raw(), si)
        progress.finish_scale(x_RlD, walk.rows(x_RlD))
    return progress.trace(time.perf_counter() - start, pyramid.S, pyramid.L)


sample = sample_sequential  # the name by which decoders outside know it


def choose(guided_BlV: Tensor, request: Request, noise: Noise, si: int, greedy: bool = False) -> tuple[Tensor, Tensor]:
    """Filter and draw one scale; return the filtered logits and idx_Bl. Draws: stream TOKEN of `si`, unless greedy."""
    filtered_BlV = filter_logits(guided_BlV, request.top_k, request.top_p)
    if greedy:
        return filtered_BlV, filtered_BlV.argmax(-1)
    return filtered_BlV, draw(filtered_BlV, noise.exponential(si, TOKEN, "reference"))
