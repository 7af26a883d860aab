"""A decoder as somebody else would write it: one image at a time, no cache, nothing of the harness but its networks.

`Naive` offers the end-to-end hook only; `WithParts` also exposes the components that it has. Both take one of `BUGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models._pair import ModelPair
from harness.models.var.transformer import Transformer
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import SeededNoise
from harness.protocol.pyramid import ScalePyramid

BUGS = ("", "trusting", "one-scale", "deaf", "unguided", "crashing", "stale-f-hat", "odd-rows", "corner")


class NoCache:
    """Everything is computed anew."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v


def causal_mask(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    rows = []
    for si in range(first, last + 1):
        for _ in range(pyramid.patch_nums[si] ** 2):
            row = torch.full((pyramid.end(last),), float("-inf"), dtype=dtype, device=device)
            row[: pyramid.end(si)] = 0.0
            rows.append(row)
    return torch.stack(rows)[None, None]


def corner_mask(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    n = pyramid.end(last) - pyramid.begin(first)
    return causal_mask(pyramid, 0, last, device, dtype)[:, :, :n]


def mix(rows: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
    if len(rows) % 2:
        raise ValueError("two halves are needed")
    half, mixed, at = len(rows) // 2, [], 0
    for si in range(first, last + 1):
        n, t = pyramid.tokens(si), cfg * si / max(1, pyramid.S - 1)
        piece = rows[:, at : at + n]
        mixed.append((1 + t) * piece[:half] - t * piece[half:])
        at += n
    return torch.cat(mixed, 1)


def mix_any(rows: Tensor, *arguments: object) -> Tensor:
    return mix(rows[: len(rows) // 2 * 2], *arguments)  # type: ignore[arg-type]


def keep(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    logits = logits.clone()
    for row in logits.view(-1, logits.shape[-1]):
        if top_k:
            row[row < row.sort(descending=True).values[top_k - 1]] = float("-inf")
        if top_p:
            order = row.argsort()
            total = row.softmax(-1)[order].cumsum(-1)
            row[order[:-1][total[:-1] <= 1 - top_p]] = float("-inf")
    return logits


def pick(probs: Tensor, E: Tensor) -> Tensor:
    score = probs / E.clamp_min(1e-30)
    return torch.where(probs > 0, score.nan_to_num(0.0), torch.full_like(score, -1.0)).argmax(-1)


@dataclass(frozen=True)
class NaiveParts:
    """The components that this decoder has; another decoder's need not be all of them."""

    attention_mask: Callable[..., Tensor] = causal_mask
    guide: Callable[..., Tensor] = mix
    draw: Callable[..., Tensor] = pick


class Naive:
    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, bug: str = "") -> None:
        assert bug in BUGS
        self.models, self.length, self.bug = models, int(settings.draft_len), bug
        self._parts = NaiveParts(
            attention_mask=corner_mask if bug == "corner" else causal_mask, guide=mix_any if bug == "odd-rows" else mix
        )

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        target = self.models.target.config
        if any(label > target.classes for label in request.labels or ()) or request.top_k > target.V:
            raise InputError("labels", request.labels, "unknown", "pass others")
        if self.bug == "crashing" and request.B > 1:
            raise IndexError("list index out of range")
        with torch.no_grad():
            made = [self._image(b, request, noise) for b in range(request.B)]
        tokens, f_hat = (torch.stack(x) for x in zip(*made, strict=True))
        return Trace(tokens, f_hat, torch.ones(request.B, self.models.pyramid.S, dtype=torch.int64))

    def _image(self, b: int, request: Request, noise: SeededNoise) -> tuple[Tensor, Tensor]:
        pyramid, scales = self.models.pyramid, []
        while len(scales) < pyramid.S:
            if self.bug == "one-scale" and scales:
                scales.append(torch.full((pyramid.tokens(len(scales)),), -1))
                continue
            proposed = list(scales)
            for _ in range(min(self.length, pyramid.S - len(scales))):
                proposed.append(self._choose(self.models.draft, b, proposed, request, noise, "draft"))
            for si in range(len(scales), len(proposed)):
                own = self._choose(self.models.target, b, scales, request, noise, "target")
                scales.append(proposed[si] if self.bug == "trusting" and si else own)
                if not torch.equal(own, proposed[si]):
                    break
        f_hat = self._f_hat(scales[:-1] if self.bug == "stale-f-hat" else scales)
        return torch.cat(scales), f_hat

    def _choose(
        self, network: Transformer, b: int, scales: list[Tensor], request: Request, noise: SeededNoise, reader: str
    ) -> Tensor:
        si, pyramid = len(scales), self.models.pyramid
        label = 0 if self.bug == "deaf" else int(noise.labels(network.config.classes)[b])
        condition = network.condition(torch.tensor([label, network.config.classes]))
        inputs = [(condition.cond_RD + network.weights["pos_start"][0])[:, None]]
        for k in range(1, si + 1):
            side = pyramid.patch_nums[k]
            raw = F.interpolate(self._f_hat(scales[:k])[None], (side, side), mode="area")[0].flatten(1).T
            inputs.append(network.embed(raw).expand(2, -1, -1))
        x = torch.cat(inputs, 1) + network.weights["pos_1LC"][:, : pyramid.end(si)]
        x = x + network.weights["lvl_embed.weight"][torch.tensor(pyramid.levels()[: pyramid.end(si)])]
        mask = self._parts.attention_mask(pyramid, 0, si, x.device, x.dtype)
        rows = network.logits(network.hidden(x, condition, NoCache(), mask), condition)[:, pyramid.span(si)]
        guided = self._parts.guide(rows, pyramid, 0.0 if self.bug == "unguided" else request.cfg, si, si)
        probs = keep(guided, request.top_k, request.top_p).softmax(-1)
        return self._parts.draw(probs, noise.exponential(si, "token", reader)[b : b + 1])[0]

    def _f_hat(self, scales: list[Tensor]) -> Tensor:
        pyramid, quantizer = self.models.pyramid, self.models.vae.quantizer
        f_hat = torch.zeros(1, quantizer.C, pyramid.P, pyramid.P, dtype=quantizer.codebook_VC.dtype)
        for si, idx in enumerate(scales):
            h = quantizer.codebook_VC[idx].T.reshape(1, quantizer.C, pyramid.patch_nums[si], pyramid.patch_nums[si])
            if si < pyramid.S - 1:
                h = F.interpolate(h, (pyramid.P, pyramid.P), mode="bicubic")
            f_hat = f_hat + quantizer.phi(h, si, pyramid.S)
        return f_hat[0]


class WithParts(Naive):
    @property
    def parts(self) -> NaiveParts:
        return self._parts

    @parts.setter
    def parts(self, parts: NaiveParts) -> None:
        self._parts = parts


def naive(models: ModelPair, settings: Settings) -> Naive:
    return Naive(models, settings)


def with_parts(models: ModelPair, settings: Settings) -> WithParts:
    return WithParts(models, settings)
