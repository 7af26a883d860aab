"""A right decoder of a third structure: a pass a guidance half, a ring of keys each, f_hat anew from all tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import harness
from harness import ModelPair
from harness.protocol import Noise, Request, ScalePyramid, Settings, Trace


class Lane:
    """One network under the labels of one guidance half."""

    def __init__(self, net, labels_B: Tensor, pyramid: ScalePyramid) -> None:
        self.net, self.pyramid, self.fill = net, pyramid, 0
        shape = (len(labels_B), net.config.H, pyramid.L, net.config.D // net.config.H)
        self.keys, self.values = ([torch.zeros(shape, dtype=net.dtype) for _ in range(net.config.depth)] for _ in "kv")
        self.condition = net.condition(labels_B)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        upto = self.fill + k.shape[2]
        self.keys[layer][:, :, self.fill : upto].copy_(k)
        self.values[layer][:, :, self.fill : upto].copy_(v)
        return self.keys[layer][:, :, :upto], self.values[layer][:, :, :upto]

    def inputs(self, scales: Sequence[int], maps: list[Tensor]) -> Tensor:
        parts = []
        for s in scales:
            body = self.condition.cond_RD[:, None] + self.net.start_1D
            if s:
                side = self.pyramid.patch_nums[s]
                small = F.interpolate(maps[s - 1], size=(side, side), mode="area")
                body = self.net.embed(small.flatten(2).transpose(1, 2))
            parts.append(body + self.net.lvl_SD[s] + self.net.pos_LD[self.pyramid.span(s)])
        return torch.cat(parts, dim=1)

    def mask(self, begin: int, end: int) -> Tensor:
        level = torch.tensor(self.pyramid.levels())
        blocked = level[begin:end].unsqueeze(1) < level[:end].unsqueeze(0)
        bias = torch.zeros(end - begin, end, dtype=self.net.dtype)
        return bias.masked_fill(blocked, -torch.inf)[None, None]

    def run(self, last: int, maps: list[Tensor]) -> tuple[range, Tensor, Tensor]:
        scales = range(self.pyramid.level_of(self.fill), last + 1)
        x = self.inputs(scales, maps)
        h = self.net.hidden(x, self.condition, self, self.mask(self.fill, self.fill + x.shape[1]))
        self.fill += x.shape[1]
        return scales, x, self.net.logits(h, self.condition)


class Lanes:
    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.models, self.length, self.p = models, int(settings.draft_len), models.pyramid

    def maps(self, tokens: list[Tensor]) -> list[Tensor]:
        q, total, made = self.models.vae.quantizer, torch.zeros(()), []
        for s, idx in enumerate(tokens):
            z = q.codes(idx, self.p.patch_nums[s])
            if s + 1 < self.p.S:
                z = F.interpolate(z, size=(self.p.P, self.p.P), mode="bicubic")
            total = total + q.phi(z, s, self.p.S)
            made.append(total)
        return made

    def guided(self, scales: range, cond: Tensor, uncond: Tensor) -> Tensor:
        t = [cond.new_full((self.p.tokens(s),), self.request.cfg * self.p.ramp(s)) for s in scales]
        t = torch.cat(t)[None, :, None]
        return (1 + t) * cond - t * uncond

    def pick(self, guided: Tensor, scales: Sequence[int], who: str) -> list[Tensor]:
        sizes = [self.p.tokens(s) for s in scales]
        race = torch.cat([self.noise.exponential(s, "token", who) for s in scales], 1)
        return list((guided.softmax(-1) / race).argmax(-1).split(sizes, 1))

    @torch.inference_mode()
    def decode(self, request: Request, noise: Noise) -> Trace:
        self.request, self.noise = request, noise
        classes, p = self.models.target.config.classes, self.p
        labels = noise.labels(classes)
        draft, target = (
            [Lane(net, each, p) for each in (labels, torch.full_like(labels, classes))]
            for net in (self.models.draft, self.models.target)
        )
        tokens, shown, rounds = [], [], [[] for _ in labels]
        while len(tokens) < p.S:
            first, known = len(tokens), list(tokens)
            last = min(first + self.length, p.S) - 1
            for s in range(first, last + 1):
                (scales, _, cond), (_, _, uncond) = (lane.run(s, self.maps(known)) for lane in draft)
                known += self.pick(self.guided(scales, cond, uncond)[:, -p.tokens(s) :], [s], "draft")
            before = target[0].fill
            (scales, xc, cond), (_, xu, uncond) = (lane.run(last, self.maps(known[:last])) for lane in target)
            guided = self.guided(scales, cond, uncond)
            chosen = self.pick(guided, scales, "target")
            wrong = torch.stack([(a != b).sum(1) for a, b in zip(chosen, known[first:], strict=True)])
            right = (wrong == 0).all(1).long().cumprod(0)
            agreed = int(right.sum())
            tokens += chosen[: agreed + 1]
            n = p.begin(len(tokens)) - p.begin(first)
            shown.append([each[:, :n] for each in (xc, xu, cond, uncond, guided)])
            for b, turns in enumerate(rounds):
                bad = int(wrong[agreed, b]) if agreed < len(wrong) else 0
                accepted = len(tokens) - first - (bad > 0)
                turns.append(
                    harness.Round(
                        first, len(wrong), accepted, bad > 0, False, n - bad, bad, 0,
                        target_rows=target[0].fill - before,
                    )
                )  # fmt: skip
            for lane in (*draft, *target):
                lane.fill = min(lane.fill, p.begin(len(tokens)))
        xc, xu, cond, uncond, guided = (torch.cat(parts, 1) for parts in zip(*shown, strict=True))
        maps = torch.stack(self.maps(tokens))
        return Trace(
            torch.cat(tokens, 1), maps[-1], torch.ones(len(labels), p.S, dtype=torch.int64), rounds,
            [len(each) for each in rounds], [sum(turn.target_rows for turn in each) for each in rounds],
            intermediates=harness.Intermediates(torch.cat([xc, xu]), torch.cat([cond, uncond]), guided, maps),
        )  # fmt: skip


factory = Lanes
