"""Sequential sampling with a KV cache: the plain reading of spec §7, and the oracle of contract A.

Promise: clarity. One scale after the other, one forward pass a scale, nothing shared with `speculative/`.
"""

import time
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from harness.models.network import Codec, Condition, Network
from harness.protocol import SMOOTH, TOKEN, Intermediates, Noise, Request, ScalePyramid, Trace
from harness.reference._steps import draw, family_of, filter_logits


class GrowingCache:
    """Keys and values of all positions so far, one concatenation a step; one that does not grow keeps no new ones."""

    def __init__(self, grows: bool = True) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._grows = grows

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        """Append and return all keys and values, (R,H,K+n,c) each."""
        if layer in self.layers:
            k_old, v_old = self.layers[layer]
            k_RHnc, v_RHnc = torch.cat((k_old, k_RHnc), 2), torch.cat((v_old, v_RHnc), 2)
        if self._grows:
            self.layers[layer] = (k_RHnc, v_RHnc)
        return k_RHnc, v_RHnc

    def cut(self, rows_r: Tensor | slice, length: int) -> Self:
        """Return a cache of some guidance rows and of the first positions alone."""
        made = type(self)()
        made.layers = {layer: (k[rows_r, :, :length], v[rows_r, :, :length]) for layer, (k, v) in self.layers.items()}
        return made


@dataclass(frozen=True)
class KnownScales:
    """The first scales of a run, computed by an earlier one of the same rows and the same tokens before them."""

    cache: GrowingCache = field(default_factory=GrowingCache)  # their keys and values
    scales: tuple[tuple[Tensor, Tensor], ...] = ()  # inputs x_RlD and logits_RlV of every one

    @classmethod
    def of(cls, shown: Intermediates, cache: GrowingCache, pyramid: ScalePyramid, count: int, rows: list[int]) -> Self:
        """Return the first `count` scales of a run, of some of its guidance rows."""
        rows_r = torch.tensor(rows, device=shown.x_RLD.device)
        spans = [(pyramid.span(si), pyramid.draws.span(si)) for si in range(count)]
        scales = tuple((shown.x_RLD[rows_r, span], shown.rows_RLV[rows_r, draws]) for span, draws in spans)
        return cls(cache.cut(rows_r, pyramid.begin(count)), scales)


@dataclass(frozen=True)
class Walk:
    """One network as it walks along the scales: the condition of its guidance rows, and a cache of its own."""

    network: Network
    condition: Condition
    cache: GrowingCache

    @classmethod
    def begin(cls, network: Network, request: Request, labels_B: Tensor, cache: GrowingCache | None = None) -> Self:
        """Return a walk for these labels of a request; `cache` holds the positions before its first one."""
        condition = family_of(network).condition(network, request, labels_B)
        return cls(network, condition, GrowingCache() if cache is None else cache)

    def input(self, raw_BlC: Tensor | None, si: int) -> Tensor:
        """Return x_RlD of scale `si`; no raw input at scale 0."""
        return family_of(self.network).input(self.network, self.condition, raw_BlC, si)

    def rows(self, x_RlD: Tensor, si: int) -> Tensor:
        """Return logits_RlV of scale `si`, which sees its cache and all of itself. Effects: the cache grows."""
        positions = family_of(self.network).positions(self.network, si, si)
        hidden_RlD = self.network.hidden(x_RlD, self.condition, self.cache, None, positions)
        return self.network.logits(hidden_RlD, self.condition)


@dataclass
class Progress:
    """One batch on its way, and all that was computed of it so far, a list item a scale."""

    network: Network  # decides, or lends its family's steps
    vae: Codec  # quantiser
    request: Request  # what is drawn
    noise: Noise  # the numbers; read as "reference"
    forced_BL: Tensor | None = None  # tokens of the first scales that are consumed in place of the drawn ones
    greedy: bool = False  # take the most likely token in place of the draw
    shown: Intermediates | None = None  # of a decoder: every scale goes on from its f_hat and guided logits
    x: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    f_hat: list[Tensor] = field(default_factory=list)

    def raw(self) -> Tensor | None:
        """Return the raw input of the next scale; None at scale 0."""
        step = family_of(self.network).next_input
        return step(self._before, len(self.f_hat), self.network.pyramid) if self.f_hat else None

    @property
    def _before(self) -> Tensor:
        """f_hat that the next scale, which is not the first, is added to."""
        before = self.f_hat[-1]
        return before if self.shown is None else self.shown.f_hat_SBCPP[len(self.f_hat) - 1].to(before)

    def finish_scale(self, x_RlD: Tensor, rows_RlV: Tensor) -> None:
        """Guide, filter, draw and accumulate the next scale, whose inputs and logits these are."""
        request, pyramid, quantizer, si = self.request, self.network.pyramid, self.vae.quantizer, len(self.rows)
        family, (h, w) = family_of(self.network), pyramid.sides[si]
        guided_BlV = family.guide(rows_RlV, request.guidance, si, pyramid.S)
        filtered_BlV, idx_Bl = choose(guided_BlV, request, self.noise, si, self.greedy)
        if request.more_smooth and family.smooth_codes is not None:
            if self.shown is not None:
                shown_BlV = self.shown.guided_BLV[:, pyramid.draws.span(si)].to(guided_BlV)
                filtered_BlV = filter_logits(shown_BlV, *request.filter(si))
            E_BlV = self.noise.exponential(si, SMOOTH, "reference")
            codes_BlC = family.smooth_codes(filtered_BlV, E_BlV, quantizer.tensors["codebook"], pyramid.ramp(si))
            codes_BChw = codes_BlC.mT.reshape(request.B, -1, h, w)
        else:
            span, forced = pyramid.draws.span(si), self.forced_BL
            used_Bl = idx_Bl if forced is None or span.stop > forced.shape[1] else forced[:, span]
            codes_BChw = quantizer.codes(used_Bl, h, w)
        latent = self.network.config.latent
        nothing = torch.zeros(request.B, *latent, device=rows_RlV.device, dtype=self.vae.dtype)
        before = self._before if self.f_hat else nothing
        self.x.append(x_RlD)
        self.rows.append(rows_RlV)
        self.guided.append(guided_BlV)
        self.tokens.append(idx_Bl)
        self.f_hat.append(family.accumulate(before, codes_BChw, si, quantizer, pyramid))

    def trace(self, seconds: float, target_calls: int, target_rows: int) -> Trace:
        """Return the trace of a batch that has all its scales, with all intermediates; calls and rows an image."""
        x_RLD, rows_RLV, guided_BLV = (torch.cat(each, 1) for each in (self.x, self.rows, self.guided))
        B, shown = self.request.B, Intermediates(x_RLD, rows_RLV, guided_BLV, torch.stack(self.f_hat))
        return Trace(
            torch.cat(self.tokens, 1), self.f_hat[-1], torch.ones(B, self.network.pyramid.S, dtype=torch.int64),
            target_calls=[target_calls] * B, target_rows=[target_rows] * B, intermediates=shown, seconds=seconds,
        )  # fmt: skip


@torch.inference_mode()
def sample_sequential(
    network: Network, vae: Codec, request: Request, noise: Noise, forced_BL: Tensor | None = None, greedy: bool = False,
    known: KnownScales | None = None,
) -> Trace:  # fmt: skip
    """Draw a batch of images sequentially, every token by one network (spec §7); return a trace with all intermediates.

    The numbers are read as "reference". `forced_BL` is teacher forcing: these tokens, of all scales or of the first
    ones, are consumed in place of the drawn ones (scale by scale, after the draw), while `Trace.tokens_BL` still holds
    what was drawn. `greedy` takes the most likely token in place of the draw; no numbers are read then. The network
    does not run for `known` scales. Effects: their cache grows by all others.

    Raises `InputError`: a label or top_k that the network does not have.
    """
    request.check_for(network.config)
    return walked(Progress(network, vae, request, noise, forced_BL, greedy), network.pyramid.S, known)


@torch.inference_mode()
def sample_shown(
    network: Network, vae: Codec, request: Request, noise: Noise, shown: Intermediates, greedy: bool = False
) -> Trace:
    """Draw a batch of which every scale goes on from what a decoder shows of the scales before it.

    For `more_smooth`, where f_hat follows the logits and rounding grows from scale to scale of a free run: inputs are
    made of the decoder's own f_hat, and code vectors of its own guided logits. Arguments as `sample_sequential`.
    """
    return walked(Progress(network, vae, request, noise, greedy=greedy, shown=shown), network.pyramid.S)


def walked(progress: Progress, scales: int, known: KnownScales | None = None) -> Trace:
    """Return the trace of a batch's first scales. Effects: on `progress`, which had none, and the cache of `known`."""
    start, network, request = time.perf_counter(), progress.network, progress.request
    known = known or KnownScales()
    walk = Walk.begin(network, request, progress.noise.labels(network.config.classes), known.cache)
    for si in range(scales):
        if si < len(known.scales):
            x_RlD, rows_RlV = known.scales[si]
        else:
            x_RlD = walk.input(progress.raw(), si)
            rows_RlV = walk.rows(x_RlD, si)
        progress.finish_scale(x_RlD, rows_RlV)
    return progress.trace(time.perf_counter() - start, scales, network.pyramid.begin(scales))


sample = sample_sequential  # the name by which decoders outside know it


def choose(guided_BlV: Tensor, request: Request, noise: Noise, si: int, greedy: bool = False) -> tuple[Tensor, Tensor]:
    """Filter and draw one scale; return the filtered logits and idx_Bl. Draws: stream TOKEN of `si`, unless greedy."""
    filtered_BlV = filter_logits(guided_BlV, *request.filter(si))
    if greedy:
        return filtered_BlV, filtered_BlV.argmax(-1)
    return filtered_BlV, draw(filtered_BlV, noise.exponential(si, TOKEN, "reference"))
