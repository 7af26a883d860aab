"""Everything that belongs to one decode, and the one function that makes scales final.

Promise: between rounds the state of an image equals that of a sequential run over its final scales. Drafting writes
only raw inputs and cache slots beyond the final scales; both are overwritten before they are read again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.models.autoencoder import Autoencoder
from harness.models.pair import ModelPair
from harness.models.transformer import Condition, Transformer
from harness.noise import Noise
from harness.pyramid import ScalePyramid
from harness.request import Request
from harness.speculative.cache import KVCache
from harness.speculative.graphs import Graphs, Workspace
from harness.trace import Intermediates, Round

if TYPE_CHECKING:
    from harness.speculative.parts import Parts


def pick(tensor: Tensor, images: list[int]) -> Tensor:
    """Return the rows `images` of a per-image tensor; the tensor itself when that is all of them."""
    return tensor if images == list(range(len(tensor))) else tensor[images]


def place(images: list[int], B: int) -> list[int] | slice:
    """Return the index of the rows `images` of B: a slice when that is all of them, which costs the device no copy."""
    return slice(None) if images == list(range(B)) else images


@dataclass
class Side:
    """One network in one decode: its condition vectors, its cache and what it was asked to compute."""

    name: str
    network: Transformer
    condition: Condition
    cache: KVCache
    calls: list[int]
    rows: list[int]
    graphs: Graphs | None = None  # recorded passes; None = every pass is launched kernel by kernel

    @classmethod
    def begin(
        cls, name: str, network: Transformer, labels_B: Tensor, parts: Parts, graphs: Graphs | None = None
    ) -> Side:
        """Prepare a network for a batch: unconditional rows behind the conditional ones."""
        B = len(labels_B)
        unconditional_B = torch.full_like(labels_B, network.config.classes)
        condition = network.condition(torch.cat((labels_B, unconditional_B)))
        if graphs is None:
            return cls(name, network, condition, parts.new_cache(network, B), [0] * B, [0] * B)
        return cls(name, network, graphs.begin(condition), graphs.cache, [0] * B, [0] * B, graphs)

    def condition_of(self, images: list[int]) -> Condition:
        """Return the condition of these images' guidance rows."""
        B = len(self.calls)
        if images == list(range(B)):
            return self.condition
        return self.condition.rows(torch.tensor(images + [B + b for b in images], device=self.network.device))


@dataclass
class DecodeState:
    """One decode in flight.

    Args:
        request: what is drawn.
        noise: the numbers.
        vae: quantiser.
        draft: the small network's side.
        target: the large network's side.
        done: number of final scales of every image.
        tokens_BL: final tokens; -1 where none is final yet.
        raw_BLC: raw inputs by position: those of scales 0..done are the final ones, later ones the draft's.
        f_hat_BCPP: latent map over the final scales.
        writes_BS: how often each scale was made final.
        rounds: of every image.
        draft_lens: what the draft length's rule keeps for every image.
        intermediates: named tensors of the final positions, or None when not kept.
    """

    request: Request
    noise: Noise
    vae: Autoencoder
    draft: Side
    target: Side
    done: list[int]
    tokens_BL: Tensor
    raw_BLC: Tensor
    f_hat_BCPP: Tensor
    writes_BS: Tensor
    rounds: list[list[Round]]
    draft_lens: list[int]
    intermediates: Intermediates | None = field(repr=False, default=None)

    @property
    def pyramid(self) -> ScalePyramid:
        """Scales."""
        return self.target.network.pyramid

    @classmethod
    def begin(
        cls,
        models: ModelPair,
        request: Request,
        noise: Noise,
        parts: Parts,
        keep: bool,
        workspace: Workspace | None = None,
    ) -> DecodeState:
        """Return the state before the first round; `keep` allocates the intermediates. Draws labels if none are given.

        With a workspace its buffers are used: one decode at a time.
        """
        labels_B = noise.labels(models.target.config.classes)
        graphs = workspace.graphs if workspace else {}
        pyramid, config, B = models.pyramid, models.target.config, request.B
        device, dtype = models.device, models.vae.dtype
        return cls(
            request=request,
            noise=noise,
            vae=models.vae,
            draft=Side.begin("draft", models.draft, labels_B, parts, graphs.get("draft")),
            target=Side.begin("target", models.target, labels_B, parts, graphs.get("target")),
            done=[0] * B,
            tokens_BL=torch.full((B, pyramid.L), -1, dtype=torch.int64, device=models.device),
            raw_BLC=workspace.raw_BLC.zero_()
            if workspace
            else torch.zeros(B, pyramid.L, config.C, device=device, dtype=dtype),
            f_hat_BCPP=torch.zeros(B, config.C, pyramid.P, pyramid.P, device=device, dtype=dtype),
            writes_BS=torch.zeros(B, pyramid.S, dtype=torch.int64),
            rounds=[[] for _ in range(B)],
            draft_lens=[0] * B,
            intermediates=_empty_intermediates(models, B) if keep else None,
        )


def _empty_intermediates(models: ModelPair, B: int) -> Intermediates:
    """NaN everywhere, so that what was never written cannot compare equal."""
    pyramid, config = models.pyramid, models.target.config

    def nan(*shape: int, dtype: torch.dtype = models.target.dtype) -> Tensor:
        return torch.full(shape, torch.nan, device=models.device, dtype=dtype)

    logits = torch.promote_types(models.target.dtype, torch.float32)
    return Intermediates(
        x_RLD=nan(2 * B, pyramid.L, config.D),
        rows_RLV=nan(2 * B, pyramid.L, config.V, dtype=logits),
        guided_BLV=nan(B, pyramid.L, config.V, dtype=logits),
        f_hat_SBCPP=nan(pyramid.S, B, config.C, pyramid.P, pyramid.P, dtype=models.vae.dtype),
    )


def update_state_with_accepted_tokens(
    state: DecodeState, parts: Parts, images: list[int], first: int, tokens_by_scale: list[Tensor], finished: list[int]
) -> None:
    """Make scales first..first+finished-1 of every image final, and roll both caches back to them.

    Args:
        state: changed in place: tokens, f_hat, the next raw input, caches, done.
        parts: the decoder's parts.
        images: of one group, all at scale `first`.
        first: scale that the round began at.
        tokens_by_scale: final tokens (b,l) of every scale of the window, for the images of the group.
        finished: number of scales that each image of the group finishes.

    Effects: in place. A cache's entries of a scale depend on the scales before it alone, so those of the last final
    scale stay valid even where its tokens were corrected.
    """
    pyramid, quantizer = state.pyramid, state.vae.quantizer
    for offset in range(max(finished)):
        si = first + offset
        group = [k for k, count in enumerate(finished) if count > offset]
        chosen = [images[k] for k in group]
        rows = place(chosen, len(state.done))
        idx_bl = pick(tokens_by_scale[offset], group) if len(group) < len(images) else tokens_by_scale[offset]
        f_hat = parts.accumulate(pick(state.f_hat_BCPP, chosen), idx_bl, si, quantizer, pyramid)
        state.tokens_BL[rows, pyramid.span(si)] = idx_bl
        state.f_hat_BCPP[rows] = f_hat
        state.writes_BS[rows, si] += 1
        if si + 1 < pyramid.S:
            state.raw_BLC[rows, pyramid.span(si + 1)] = parts.next_input(f_hat, si + 1, pyramid)
        if state.intermediates is not None:
            state.intermediates.f_hat_SBCPP[si, rows] = f_hat
    for image, count in zip(images, finished, strict=True):
        state.done[image] = first + count
        for side in (state.draft, state.target):
            side.cache.rollback(image, pyramid.begin(first + count))
