"""Decoders with one bug each, as factories that `--implementation tests.planted:NAME` can name.

Every bug is the production decoder with one part replaced, or with the numbers it reads tampered with; nothing else
changes. `PLANTED` says which component the judge must point to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.models.network import Condition
from harness.models.pair import ModelPair
from harness.models.transformer import Transformer
from harness.protocol.decoder import Settings
from harness.protocol.noise import SeededNoise
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.speculative import guidance, latent, query
from harness.speculative.cache import CacheWindow, KVCache
from harness.speculative.parts import PARTS, Parts
from harness.speculative.sampler import Options, SpeculativeDecoder


def offset_query(network: Transformer, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    """Place every window behind the first at the positions of one scale earlier."""
    x_RnD = query.build_combined_query(network, condition, raw_BnC, first, last)
    if first == 0:
        return x_RnD
    pyramid, n = network.pyramid, raw_BnC.shape[1]
    begin, wrong = pyramid.begin(first), pyramid.begin(first - 1)
    levels = torch.tensor(pyramid.levels())
    own_nD = network.lvl_SD[levels[begin : begin + n]] + network.pos_LD[begin : begin + n]
    wrong_nD = network.lvl_SD[levels[wrong : wrong + n]] + network.pos_LD[wrong : wrong + n]
    return x_RnD - own_nD + wrong_nD


def unconditional_first(logits_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    """Take the first half of the rows for the unconditional one."""
    return guidance.guide(logits_RnV.roll(len(logits_RnV) // 2, 0), pyramid, cfg, first, last)


def added_twice(f_hat_BCPP: Tensor, idx_Bl: Tensor, si: int, quantizer: Any, pyramid: ScalePyramid) -> Tensor:
    """Add every scale's contribution twice."""
    once = latent.accumulate(f_hat_BCPP, idx_Bl, si, quantizer, pyramid)
    return latent.accumulate(once, idx_Bl, si, quantizer, pyramid)


def top_left_mask(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Take the rows of the mask from its top, as if nothing were cached."""
    end, n = pyramid.end(last), pyramid.end(last) - pyramid.begin(first)
    level_L = torch.tensor(pyramid.levels(), device=device)[:end]
    forbidden_nK = level_L[:n, None] < level_L[None, :]
    return torch.zeros(n, end, device=device, dtype=dtype).masked_fill(forbidden_nK, float("-inf"))[None, None]


class StaleCache(KVCache):
    """Forget to overwrite: a slot keeps what a rejected scale wrote into it."""

    def __init__(self, network: Transformer, B: int) -> None:
        super().__init__(network, B)
        self.written = [0] * B

    def window(self, images: list[int]) -> CacheWindow:
        return StaleWindow(self, images)


class StaleWindow(CacheWindow):
    """Write behind the high-water mark only."""

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.cache, StaleCache)
        B, end = len(self.cache.lengths), self.start + k_RHnc.shape[2]
        kept = self.cache.kv[layer].clone()
        super().extend(layer, k_RHnc, v_RHnc)
        for image in self.images:
            old = slice(self.start, max(self.start, min(end, self.cache.written[image])))
            for row in (image, B + image):
                self.cache.kv[layer][:, row, :, old] = kept[:, row, :, old]
        k_slots, v_slots = self.cache.kv[layer]
        rows = [*self.images, *(B + image for image in self.images)]
        return k_slots[rows, :, :end], v_slots[rows, :, :end]

    def commit(self, end: int) -> None:
        assert isinstance(self.cache, StaleCache)
        super().commit(end)
        for image in self.images:
            self.cache.written[image] = max(self.cache.written[image], end)


class NeverRolledBack(KVCache):
    """Keep every length that was ever reached, so that rejected scales stay in the cache."""

    def rollback(self, image: int, length: int) -> None:
        return None


@dataclass(frozen=True)
class TamperedNoise:
    """Give the target other numbers from scale 1 on: those of another seed, or those of the scale before."""

    noise: SeededNoise
    redrawn: SeededNoise | None

    def labels(self, classes: int) -> Tensor:
        return self.noise.labels(classes)

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        if reader != "target" or si == 0:
            return self.noise.exponential(si, stream, reader)
        if self.redrawn is not None:
            return self.redrawn.exponential(si, stream, reader)
        own, before = (self.noise.exponential(k, stream, reader) for k in (si, si - 1))
        return before.repeat(1, -(-own.shape[1] // before.shape[1]), 1)[:, : own.shape[1]]


class Tampered:
    """The production decoder that reads tampered numbers."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, redraw: bool) -> None:
        self.models, self.redraw = models, redraw
        self.inner = SpeculativeDecoder(models, Options(settings.draft_len, settings.bonus))

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        other = replace(request, seed=request.seed + 1)
        V, device = self.models.target.config.V, self.models.device
        redrawn = SeededNoise(other, self.models.pyramid, V, device) if self.redraw else None
        return self.inner.decode(request, TamperedNoise(noise, redrawn))


def _build(models: ModelPair, settings: Settings, parts: Parts) -> SpeculativeDecoder:
    return SpeculativeDecoder(models, Options(settings.draft_len, settings.bonus), parts)


def positions(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
    return _build(models, settings, replace(PARTS, build_combined_query=offset_query))


def halves(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
    return _build(models, settings, replace(PARTS, guide=unconditional_first))


def twice(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
    return _build(models, settings, replace(PARTS, accumulate=added_twice))


def corner(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
    return _build(models, settings, replace(PARTS, attention_mask=top_left_mask))


def stale(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
    return _build(models, settings, replace(PARTS, new_cache=StaleCache))


def no_rollback(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
    return _build(models, settings, replace(PARTS, new_cache=NeverRolledBack))


def redrawn(models: ModelPair, settings: Settings) -> Tampered:
    return Tampered(models, settings, True)


def wrong_scale(models: ModelPair, settings: Settings) -> Tampered:
    return Tampered(models, settings, False)


# factory: component that the first defect must name
PLANTED = {
    positions: "positions",
    halves: "guidance",
    twice: "f_hat",
    corner: "mask or cache",
    stale: "cache",
    no_rollback: "crash",
    redrawn: "draw",
    wrong_scale: "draw",
}
