"""A right decoder of another structure than the one that `init` writes: preallocated caches, a batch in one step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import harness
from harness import ModelPair
from harness.protocol import Noise, Request, ScalePyramid, Settings, Trace


class KV:
    """Keys and values of all layers, one buffer of each, and how many positions of them are filled."""

    def __init__(self, net, rows: int, length: int) -> None:
        config = net.config
        shape = config.depth, rows, config.H, length, config.D // config.H
        self.k, self.v, self.fill = torch.zeros(shape, dtype=net.dtype), torch.zeros(shape, dtype=net.dtype), 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        stop = self.fill + k.shape[2]
        self.k[layer, :, :, self.fill : stop] = k
        self.v[layer, :, :, self.fill : stop] = v
        return self.k[layer, :, :, :stop].to(k), self.v[layer, :, :, :stop].to(v)


class Net:
    """A network with its cache and condition."""

    def __init__(self, net, labels_B: Tensor, pyramid: ScalePyramid) -> None:
        self.net, self.pyramid = net, pyramid
        null_B = torch.full_like(labels_B, net.config.classes)
        self.cond = net.condition(torch.cat([labels_B, null_B]))
        self.kv = KV(net, 2 * len(labels_B), pyramid.L)
        self.levels = torch.tensor(pyramid.levels())

    def input(self, f_hat: Tensor, si: int) -> Tensor:
        net = self.net
        if si == 0:
            return self.cond.cond_RD[:, None] + net.start_1D + net.lvl_SD[0] + net.pos_LD[0]
        pn = self.pyramid.patch_nums[si]
        raw = F.interpolate(f_hat, size=(pn, pn), mode="area").flatten(2).mT
        x = net.embed(raw) + net.lvl_SD[si] + net.pos_LD[self.pyramid.span(si)]
        return torch.cat([x, x])

    def forward(self, x: Tensor) -> Tensor:
        begin = self.kv.fill
        end = begin + x.shape[1]
        rows, columns = self.levels[begin:end, None], self.levels[None, :end]
        bias = torch.zeros(rows.shape[0], end, dtype=x.dtype)
        bias[rows < columns] = float("-inf")
        h = self.net.hidden(x, self.cond, self.kv, bias[None, None])
        self.kv.fill = end
        return self.net.logits(h, self.cond)


class Lockstep:
    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.models, self.length = models, int(settings.draft_len)

    @torch.inference_mode()
    def decode(self, request: Request, noise: Noise) -> Trace:
        models, pyramid = self.models, self.models.pyramid
        labels_B = noise.labels(models.target.config.classes)
        draft, target = Net(models.draft, labels_B, pyramid), Net(models.target, labels_B, pyramid)
        quantizer = models.vae.quantizer
        kept, rounds, target_rows = [], [[] for _ in labels_B], 0
        f_hat = quantizer.codebook_VC.new_zeros(len(labels_B), quantizer.C, pyramid.P, pyramid.P)

        def add(f_hat: Tensor, idx: Tensor, si: int) -> Tensor:
            h = quantizer.codes(idx, pyramid.patch_nums[si])
            if si < pyramid.S - 1:
                h = F.interpolate(h, size=f_hat.shape[-2:], mode="bicubic")
            return f_hat + quantizer.phi(h, si, pyramid.S)

        def guided(rows: Tensor, si: int) -> Tensor:
            cond, uncond = rows.chunk(2)
            return cond + request.cfg * pyramid.ramp(si) * (cond - uncond)

        def pick(logits: Tensor, si: int, reader: str) -> Tensor:
            return (logits.softmax(-1) / noise.exponential(si, "token", reader)).argmax(-1)

        while len(kept) < pyramid.S:
            first = len(kept)
            scales, drafted, maps = range(first, min(first + self.length, pyramid.S)), [], [f_hat]
            for si in scales:
                drafted.append(pick(guided(draft.forward(draft.input(maps[-1], si)), si), si, "draft"))
                maps.append(add(maps[-1], drafted[-1], si))
            x = torch.cat([target.input(each, si) for each, si in zip(maps, scales, strict=False)], 1)
            logits = target.forward(x)
            target_rows += x.shape[1]
            accepted, offset = torch.zeros(len(labels_B), dtype=torch.int64), pyramid.begin(first)
            for si, guess in zip(scales, drafted, strict=True):
                part = slice(pyramid.begin(si) - offset, pyramid.end(si) - offset)
                mixed = guided(logits[:, part], si)
                idx = pick(mixed, si, "target")
                f_hat = add(f_hat, idx, si)
                kept.append((idx, x[:, part], logits[:, part], mixed, f_hat))
                wrong = (idx != guess).sum(-1)
                accepted += wrong == 0
                if wrong.any():
                    break
            for b, w in enumerate(wrong.tolist()):
                made = pyramid.begin(len(kept)) - offset
                rounds[b].append(
                    harness.Round(
                        first, len(scales), int(accepted[b]), w > 0, False, made - w, w, 0, target_rows=x.shape[1]
                    )
                )
            draft.kv.fill = target.kv.fill = pyramid.begin(len(kept))
        tokens, inputs, rows, mixed, f_hats = zip(*kept, strict=True)
        return Trace(
            torch.cat(tokens, 1), f_hats[-1], torch.ones(len(labels_B), pyramid.S, dtype=torch.int64), rounds,
            [len(each) for each in rounds], [target_rows] * len(labels_B),
            intermediates=harness.Intermediates(
                torch.cat(inputs, 1), torch.cat(rows, 1), torch.cat(mixed, 1), torch.stack(f_hats)
            ),
        )  # fmt: skip


factory = Lockstep
