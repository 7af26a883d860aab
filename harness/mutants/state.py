"""Planted bugs of state: f_hat, inputs, caches, and what outlives a decode."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from harness.decoders import Factory
from harness.models.network import Network
from harness.mutants._mutant import Alone, Mutant, caching, labelled, parts, reporting, returned, wrapped
from harness.protocol import Noise, Request, ScalePyramid, Trace
from harness.speculative import PARTS, CacheWindow, KVCache
from harness.speculative.sampler import SpeculativeDecoder


def twice(f_hat_BCPP: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    """Add every scale's contribution twice."""
    once = PARTS.accumulate(f_hat_BCPP, idx_Bl, si, quantizer, pyramid)
    return PARTS.accumulate(once, idx_Bl, si, quantizer, pyramid)


def _bilinear(f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    side = pyramid.patch_nums[si]
    return F.interpolate(f_hat_BCPP, (side, side), mode="bilinear").flatten(2).mT


def stale_input(state: Any, own: Any, images: list[int], first: int, tokens: list[Tensor], finished: list[int]) -> None:
    """Keep the draft's input of the next scale, although the tokens before it were corrected."""
    drafted_BLC = state.raw_BLC.clone()
    PARTS.update_state_with_accepted_tokens(state, own, images, first, tokens, finished)
    for image in images:
        if state.done[image] < state.pyramid.S:
            span = state.pyramid.span(state.done[image])
            state.raw_BLC[image, span] = drafted_BLC[image, span]


class _Stale(KVCache):
    """Forget to overwrite: a slot keeps what a rejected scale wrote into it."""

    def __init__(self, network: Network, B: int, halves: int = 2) -> None:
        super().__init__(network, B, halves)
        self.written = [0] * B

    def window(self, images: list[int]) -> CacheWindow:
        return _StaleWindow(self, images)


class _StaleWindow(CacheWindow):
    cache: _Stale

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        B, end = len(self.cache.lengths), self.start + k_RHnc.shape[2]
        before = self.cache.kv[layer].clone()
        super().extend(layer, k_RHnc, v_RHnc)
        for image in self.images:
            old = slice(self.start, max(self.start, min(end, self.cache.written[image])))
            for row in (image, B + image):
                self.cache.kv[layer][:, row, :, old] = before[:, row, :, old]
        k_slots, v_slots = self.cache.kv[layer]
        rows = [*self.images, *(B + image for image in self.images)]
        return k_slots[rows, :, :end], v_slots[rows, :, :end]

    def commit(self, end: int) -> None:
        super().commit(end)
        for image in self.images:
            self.cache.written[image] = max(self.cache.written[image], end)


def _reused(decoder: SpeculativeDecoder, request: Request, noise: Noise) -> Trace:
    kept: dict[Any, KVCache] = vars(decoder).setdefault("kept_caches", {})
    decoder.parts = replace(PARTS, new_cache=lambda network, *size: kept.setdefault(
        (id(network), *size), KVCache(network, *size)))  # fmt: skip
    trace = decoder.decode(request, noise)
    for cache in kept.values():
        cache.lengths[:] = [0] * len(cache.lengths)
    return trace


def _shared_buffers(decoder: SpeculativeDecoder, request: Request, noise: Noise) -> Trace:
    trace = decoder.decode(request, noise)
    buffers = vars(decoder).setdefault("kept_buffers", {})
    tokens_BL, f_hat = buffers.setdefault(request.B, (trace.tokens_BL.clone(), trace.f_hat_BCPP.clone()))
    trace.tokens_BL, trace.f_hat_BCPP = tokens_BL.copy_(trace.tokens_BL), f_hat.copy_(trace.f_hat_BCPP)
    return trace


def _kept(change: Callable[[Tensor], Tensor]) -> Factory:
    """Plant a bug in what a trace keeps of f_hat, scale by scale."""

    def changed(trace: Trace) -> None:
        if trace.intermediates is not None:
            trace.intermediates.f_hat_SBCPP = change(trace.intermediates.f_hat_SBCPP.clone())

    return reporting(changed)


def _first_nan(f_hat_SBCPP: Tensor) -> Tensor:
    f_hat_SBCPP[-1, :, :1] = float("nan")
    return f_hat_SBCPP


# fmt: off
TWICE = Mutant("state.twice", "every scale is added to f_hat twice",
    "accumulated in verification and again in the update", parts(accumulate=twice), component="f_hat")
IN_PLACE = Mutant("state.in-place", "accumulation writes into its argument",
    "+= to save memory, while the draft works on the same map",
    returned(accumulate=lambda after, before, *scale: before.copy_(after)))
LAST_LOST = Mutant("state.last-lost", "the last scale never reaches f_hat",
    "accumulation inside `if there is a next scale`",
    returned(accumulate=lambda after, before, idx_Bl, si, quantizer, pyramid: (
        after if si + 1 < pyramid.S else before.clone())))
BILINEAR = Mutant("state.bilinear", "next inputs are resized bilinearly", "the default of the resizing call",
    parts(next_input=_bilinear))
ALIAS = Alone("state.alias", "the last scale's input is f_hat's memory", "a shortcut where no resizing is needed",
    returned(next_input=lambda raw_BlC, f_hat_BCPP, si, pyramid: (
        f_hat_BCPP.flatten(2).mT if pyramid.patch_nums[si] == pyramid.P else raw_BlC)))
STALE_INPUT = Mutant("state.stale-input", "after a correction the next input is still the draft's",
    "inputs kept from drafting", parts(update_state_with_accepted_tokens=stale_input))
STALE = Mutant("state.stale", "cache slots keep what a rejected scale wrote",
    "a slot taken for valid because it was written", parts(new_cache=_Stale), component="cache")
NO_ROLLBACK = Mutant("state.no-rollback", "caches are never rolled back",
    "a rollback that was forgotten for one network", caching(rollback=lambda cache, image, length: None),
    component="crash")
ROLLED_FORWARD = Mutant("state.rolled-forward", "a rollback may lengthen a cache",
    "length = n for length = min(length, n)", caching(
        rollback=lambda cache, image, length: cache.lengths.__setitem__(image, length)))
REUSED = Alone("state.reused", "an exception leaves the caches full for the next decode",
    "buffers emptied at the end, not at the start", wrapped(_reused))
SHARED_BUFFERS = Alone("state.shared-buffers", "a trace's tensors change with the next decode",
    "static buffers, as CUDA graphs need them, handed out", wrapped(_shared_buffers))
CLAMPED = Alone("state.clamped", "a label out of range is decoded as the last class", "clamp in place of a check",
    labelled(lambda labels: tuple(min(label, 3) for label in labels)))
MODULO = Alone("state.modulo", "a label out of range wraps around", "an index taken modulo the table",
    labelled(lambda labels: tuple(label % 4 for label in labels)))
KEPT_NAN = Mutant("state.kept-nan", "a channel of the kept f_hat is NaN after the last scale", "a buffer never written",
    _kept(_first_nan), component="f_hat")
KEPT_EARLY = Mutant("state.kept-early", "f_hat is kept before its scale is added", "a copy one line too early",
    _kept(lambda f_hat_SBCPP: f_hat_SBCPP.roll(1, 0)), component="f_hat")
