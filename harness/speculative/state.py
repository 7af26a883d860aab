"""Everything that belongs to one decode, and the one function that makes scales final.

Promise: between rounds the state of an image equals that of a sequential run over its final scales. Drafting writes
only raw inputs and cache slots beyond the final scales; both are overwritten before they are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from harness.models.autoencoder import Autoencoder
from harness.models.network import Condition, Network
from harness.models.pair import ModelPair
from harness.protocol.noise import Noise
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request
from harness.protocol.trace import Intermediates, Round
from harness.speculative.buffers import Buffers
from harness.speculative.cache import KVCache
from harness.speculative.graphs import Eager, Launcher, Workspace

if TYPE_CHECKING:
    from harness.speculative.parts import Parts

T = TypeVar("T")


def pick(tensor: Tensor, images: list[int]) -> Tensor:
    """Return the rows `images` of a per-image tensor; the tensor itself when that is all of them."""
    return tensor if images == list(range(len(tensor))) else tensor[images]


def place(images: list[int], B: int) -> list[int] | slice:
    """Return the index of the rows `images` of B: a slice when that is all of them, which costs the device no copy."""
    return slice(None) if images == list(range(B)) else images


@dataclass
class Side:
    """One network in one decode: its guidance rows' labels, its cache and what it was asked to compute."""

    name: str
    network: Network
    labels_R: Tensor
    cache: KVCache
    launcher: Launcher
    calls: list[int]
    rows: list[int]

    @cached_property
    def condition(self) -> Condition:
        """All that depends on the labels, computed when it is first needed."""
        return self.launcher.run(("condition", self.name), lambda: self.network.condition(self.labels_R), lasting=True)

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
        launcher: records and replays the work of whole batches, or does not.
        done: number of final scales of every image.
        writes_BS: how often each scale was made final.
        rounds: of every image.
        draft_lens: what the draft length's rule keeps for every image.
        intermediates: named tensors of the final positions, or None when not kept.

    The tensors are those of `Buffers`.
    """

    request: Request
    noise: Noise
    vae: Autoencoder
    draft: Side
    target: Side
    launcher: Launcher
    done: list[int]
    tokens_BL: Tensor
    raw_BLC: Tensor
    f_hat_BCPP: Tensor
    drafted_tokens_BL: Tensor
    drafted_probs_BLV: Tensor
    drafted_f_hat_BCPP: Tensor
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
        B, launcher = request.B, workspace or Eager()
        labels_R = torch.cat((labels_B, torch.full_like(labels_B, models.target.config.classes)))
        if workspace is not None:
            workspace.begin()
            noise = workspace.numbers.begin(noise)
            labels_R = workspace.labels_R.copy_(labels_R)

        def side(name: str, network: Network) -> Side:
            cache = workspace.caches[name] if workspace else parts.new_cache(network, B)
            return Side(name, network, labels_R, cache, launcher, [0] * B, [0] * B)

        return cls(
            request=request,
            noise=noise,
            vae=models.vae,
            draft=side("draft", models.draft),
            target=side("target", models.target),
            launcher=launcher,
            done=[0] * B,
            **vars(workspace.buffers if workspace else Buffers.new(models, B)),
            writes_BS=torch.zeros(B, models.pyramid.S, dtype=torch.int64),
            rounds=[[] for _ in range(B)],
            draft_lens=[0] * B,
            intermediates=_empty_intermediates(models, B) if keep else None,
        )

    def run(self, images: list[int], key: tuple[Hashable, ...], compute: Callable[[], T]) -> T:
        """Do device work for these images; that of a whole batch may be recorded and replayed.

        Args:
            images: one group.
            key: what the work is, together with the request's filter and guidance; () where it must not be recorded.
            compute: the work: on the state's tensors, without a host synchronisation.
        """
        if not key or len(images) < len(self.done):
            return compute()
        request = self.request
        return self.launcher.run((*key, request.cfg, request.top_k, request.top_p), compute)


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
    groups = [[k for k, count in enumerate(finished) if count > offset] for offset in range(max(finished))]
    rows = [place([images[k] for k in group], len(state.done)) for group in groups]
    for offset, group in enumerate(groups):
        idx_bl = pick(tokens_by_scale[offset], group) if len(group) < len(images) else tokens_by_scale[offset]
        state.tokens_BL[rows[offset], pyramid.span(first + offset)] = idx_bl
        state.writes_BS[rows[offset], first + offset] += 1

    def accumulate() -> list[Tensor]:
        f_hats = []
        for offset, group in enumerate(groups):
            si, chosen = first + offset, [images[k] for k in group]
            idx_bl = pick(state.tokens_BL[:, pyramid.span(si)], chosen)
            f_hats.append(parts.accumulate(pick(state.f_hat_BCPP, chosen), idx_bl, si, quantizer, pyramid))
            state.f_hat_BCPP[rows[offset]] = f_hats[-1]
            if si + 1 < pyramid.S:
                state.raw_BLC[rows[offset], pyramid.span(si + 1)] = parts.next_input(f_hats[-1], si + 1, pyramid)
        return f_hats

    together = len(set(finished)) == 1
    f_hats = state.run(images, ("update", first, finished[0]) if together else (), accumulate)
    if state.intermediates is not None:
        for offset, f_hat in enumerate(f_hats):
            state.intermediates.f_hat_SBCPP[first + offset, rows[offset]] = f_hat
    for image, count in zip(images, finished, strict=True):
        state.done[image] = first + count
        for side in (state.draft, state.target):
            side.cache.rollback(image, pyramid.begin(first + count))
