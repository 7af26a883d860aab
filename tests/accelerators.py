"""Accelerated samplers without a draft, each right and with its usual mistakes: what `--may-differ-from` is for.

From a scale on they leave something out: positions (the hidden state of a neighbour stands in), blocks, keys of
earlier scales, or the whole network (a smaller one draws). `ratio` is how much, `entry` the first scale. At ratio 0
nothing is left out, and contract A is claimed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness import ModelPair, Request, Settings, Trace
from harness.reference import family_of
from harness.reference.sequential import Progress, Walk


class Accelerated:
    """The sequential sampler with one thing left out."""

    mistake, leaves_positions = "", False

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.models, S = models, models.pyramid.S
        self.ratio = float(settings.option("ratio") or 0.5)
        self.entry = min(int(settings.option("entry") or 8), S - 1) - (self.mistake == "before its scale")
        self.contract = "quality-preserving" if self.ratio else "token-identical"
        self.left_SN = torch.zeros(S, models.target.config.depth, dtype=torch.int64)

    @torch.inference_mode()
    def decode(self, request: Request, noise: Any) -> Trace:
        request.check_for(self.models.target.config)
        target, pyramid = self.models.target, self.models.pyramid
        progress = Progress(target, self.models.vae, request, noise)
        walk = Walk.begin(target, request, noise.labels(target.config.classes))
        self.left_SN.zero_()
        self.begin(request, noise)
        for si in pyramid:
            x_RlD = walk.input(progress.raw(), si)
            self.follow(progress.raw(), si)
            rows = self.rows if si >= self.entry and self.ratio else Walk.rows
            progress.finish_scale(x_RlD, rows(walk, x_RlD, si))
        without = sum(int(left_N.amin()) == pyramid.tokens(si) for si, left_N in enumerate(self.left_SN))
        passes = pyramid.S - without * self.leaves_positions
        left = int(self.left_SN.amin(1).sum()) if self.leaves_positions else 0
        trace = progress.trace(0.0, passes, pyramid.L - left)
        return replace(trace, skipped_BSN=self.left_SN.expand(request.B, -1, -1).clone())

    def begin(self, request: Request, noise: Any) -> None:
        """Hear of a new decode."""

    def follow(self, raw_BlC: Tensor | None, si: int) -> None:
        """Hear of the raw input of every scale."""

    def rows(self, walk: Walk, x_RlD: Tensor, si: int) -> Tensor:
        raise NotImplementedError


class Pruned(Accelerated):
    """Computes some positions; the others take the hidden state of the last one before them."""

    leaves_positions = True
    before: Tensor | None = None

    def rows(self, walk: Walk, x_RlD: Tensor, si: int) -> Tensor:
        l = x_RlD.shape[1]
        count = l if self.mistake == "prunes nothing" else max(1, round(l * (1 - self.ratio)))
        keep_n = torch.linspace(0, l - 1, count).long().unique()
        where = family_of(walk.network).positions(walk.network, si, si)
        where = None if where is None else where[keep_n]
        h_RnD = walk.network.hidden(x_RlD[:, keep_n], walk.condition, walk.cache, None, where)
        nearest_l = torch.searchsorted(keep_n, torch.arange(l), right=True) - 1
        h_RlD = h_RnD[:, nearest_l]
        if self.mistake == "restores from an earlier image":
            if self.before is not None and self.before.shape == h_RlD.shape:
                others_l = ~torch.isin(torch.arange(l), keep_n)
                h_RlD[:, others_l] = self.before[:, others_l]
            self.before = h_RlD.clone()
        self.left_SN[si] = l - len(keep_n)
        return walk.network.logits(h_RlD, walk.condition)


class PrunesNothing(Pruned):
    mistake = "prunes nothing"


class PrunesEarly(Pruned):
    mistake = "before its scale"


class Remembers(Pruned):
    mistake = "restores from an earlier image"


class EarlyExit(Accelerated):
    """Leaves the last blocks out."""

    def rows(self, walk: Walk, x_RlD: Tensor, si: int) -> Tensor:
        depth, where = len(walk.condition.blocks), family_of(walk.network).positions(walk.network, si, si)
        kept = max(1, round(depth * (1 - self.ratio)))
        self.left_SN[si, kept:] = x_RlD.shape[1]
        condition = replace(walk.condition, blocks=walk.condition.blocks[:kept])
        return walk.network.logits(walk.network.hidden(x_RlD, condition, walk.cache, None, where), walk.condition)


class ExitsEarly(EarlyExit):
    mistake = "before its scale"


class Compressed(Accelerated):
    """Drops keys and values of some earlier positions before a scale's pass."""

    def rows(self, walk: Walk, x_RlD: Tensor, si: int) -> Tensor:
        begin = self.models.pyramid.begin(self.entry - 1)
        for i, (k, v) in walk.cache.layers.items():
            keep = torch.ones(k.shape[2], dtype=torch.bool)
            keep[:begin:2] = False
            if k.shape[2] == self.models.pyramid.begin(si):  # once
                walk.cache.layers[i] = k[:, :, keep], v[:, :, keep]
                for early in range(self.entry - 1):
                    self.left_SN[early, i] += int((~keep[self.models.pyramid.span(early)]).sum())
        return walk.rows(x_RlD, si)


class DropsEarly(Compressed):
    mistake = "before its scale"


class HandsOver(Accelerated):
    """Lets the draft draw the last scales; it has followed all the others."""

    leaves_positions = True

    def begin(self, request: Request, noise: Any) -> None:
        self.small = Walk.begin(self.models.draft, request, noise.labels(self.models.target.config.classes))

    def follow(self, raw_BlC: Tensor | None, si: int) -> None:
        self.drafted = self.small.rows(self.small.input(raw_BlC, si), si)

    def rows(self, walk: Walk, x_RlD: Tensor, si: int) -> Tensor:
        self.left_SN[si] = x_RlD.shape[1]
        return self.drafted


class HandsOverEarly(HandsOver):
    mistake = "before its scale"


class KeepsTheSmallOne(HandsOver):
    """Makes the small network's cache once, and lets it grow from image to image."""

    mistake = "goes on from an earlier image"

    def begin(self, request: Request, noise: Any) -> None:
        if not hasattr(self, "small") or len(self.small.condition.blocks[0][0]) != request.R:
            super().begin(request, noise)


class NotNeutral(Pruned):
    """Goes through half precision at ratio 0, too."""

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        super().__init__(models, settings)
        self.contract, self.entry = "token-identical", 0

    @torch.inference_mode()
    def decode(self, request: Request, noise: Any) -> Trace:
        self.ratio = 1e-9
        return super().decode(request, noise)

    def rows(self, walk: Walk, x_RlD: Tensor, si: int) -> Tensor:
        rows_RlV = walk.rows(x_RlD, si)
        return (rows_RlV * 4).round() / 4
