"""Everything that belongs to one decode: its memory, the way to the device, what is final, and what makes scales final.

Promise: between rounds all that is read again of an image equals that of a sequential run over its final scales. What
drafting writes before they are final (raw inputs and cache slots of later scales, the drafted tensors of `Buffers`) is
written anew before it is read. A cache is preallocated once; slot = absolute position, so nothing ever moves; every
image has a length of its own, which `rollback` only lowers, and slots at or beyond it are never read. Device work is
plain functions of the tensors, launched kernel by kernel here, recorded once and replayed in `tools.graphs`; the
decoder does not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, Self, TypeVar, TypeVarTuple

import torch
from torch import Tensor

from harness.models import Codec, Condition, ModelPair, Network
from harness.protocol import Intermediates, Noise, Request, Round, ScalePyramid


class KVCache:
    """Keys and values of B images over the network's L positions, of each its one or two guidance rows (`halves`)."""

    def __init__(self, network: Network, B: int, halves: int = 2) -> None:
        config = network.config
        shape = (config.depth, 2, halves * B, config.H, config.pyramid.L, config.D // config.H)
        self.kv = torch.zeros(shape, device=network.device, dtype=network.dtype)
        self.lengths = [0] * B

    def bytes(self) -> int:
        """Bytes held: depth · D · L · R · 2 · bytes per number."""
        return self.kv.numel() * self.kv.element_size()

    def window(self, images: list[int]) -> CacheWindow:
        """Return the view that a pass over `images`, all of one length, writes through; `commit` raises that."""
        return CacheWindow(self, images)

    def rollback(self, image: int, length: int) -> None:
        """Forget everything of `image` from position `length` on; a longer length than now is left alone."""
        self.lengths[image] = min(self.lengths[image], length)


class CacheWindow:
    """One forward pass's door to the cache; meets the networks' `Cache` protocol."""

    def __init__(self, cache: KVCache, images: list[int]) -> None:
        self.cache, self.images = cache, images
        B = len(cache.lengths)
        self.start = cache.lengths[images[0]]
        whole = images == list(range(B))
        rows = [first + b for first in range(0, cache.kv.shape[2], B) for b in images]
        self.rows_R: Tensor | None = None if whole else torch.tensor(rows, device=cache.kv.device)

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        """Write n positions after the images' length; return keys and values of all positions so far."""
        k_slots, v_slots = self.cache.kv[layer]
        end = self.start + k_RHnc.shape[2]
        new = slice(self.start, end)
        if self.rows_R is None:
            k_slots[:, :, new], v_slots[:, :, new] = k_RHnc, v_RHnc
            return k_slots[:, :, :end], v_slots[:, :, :end]
        k_slots[self.rows_R, :, new], v_slots[self.rows_R, :, new] = k_RHnc, v_RHnc
        return k_slots[self.rows_R, :, :end], v_slots[self.rows_R, :, :end]

    def commit(self, end: int) -> None:
        """Raise the images' lengths to `end`: what was written, by this pass or by the replay of an equal one."""
        for image in self.images:
            self.cache.lengths[image] = end


NewCache = Callable[..., KVCache]  # (network, B, halves=2) -> an empty cache

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ConditionRows = Callable[[Network, Request, Tensor], Condition]


class LatentParts(Protocol):
    """The two parts that making a scale final needs."""

    @property
    def accumulate(self) -> Callable[[Tensor, Tensor, int, Any, ScalePyramid], Tensor]: ...

    @property
    def next_input(self) -> Callable[[Tensor, int, ScalePyramid], Tensor]: ...


def pick(tensor: Tensor, images: list[int]) -> Tensor:
    """Return the rows `images` of a per-image tensor; the tensor itself when that is all of them."""
    return tensor if images == list(range(len(tensor))) else tensor[images]


def place(images: list[int], B: int) -> list[int] | slice:
    """Return the index of the rows `images` of B: a slice when that is all of them, which costs the device no copy."""
    return slice(None) if images == list(range(B)) else images


@dataclass
class Buffers:
    """What is final, and what the draft proposes after it."""

    tokens_BL: Tensor  # final tokens; -1 where none is final yet
    raw_BLC: Tensor  # raw inputs by position: those of scales 0..done are the final ones, later ones the draft's
    f_hat_BCPP: Tensor  # latent map over the final scales
    drafted_tokens_BL: Tensor  # proposed tokens; read only where this round wrote them
    drafted_probs_BLV: Tensor  # the laws that they were drawn from; likewise
    drafted_f_hat_BCPP: Tensor  # latent map over the final and the proposed scales; copied from f_hat in every round

    @classmethod
    def new(cls, models: ModelPair, B: int) -> Self:
        config, L, drawn = models.target.config, models.pyramid.L, models.pyramid.draws.L
        device, latent = models.device, models.vae.dtype
        law = torch.promote_types(models.draft.dtype, torch.float32)
        buffers = cls(
            tokens_BL=torch.empty(B, drawn, dtype=torch.int64, device=device),
            raw_BLC=torch.empty(B, L, config.raw, dtype=latent, device=device),
            f_hat_BCPP=torch.empty(B, *config.latent, dtype=latent, device=device),
            drafted_tokens_BL=torch.empty(B, drawn, dtype=torch.int64, device=device),
            drafted_probs_BLV=torch.empty(B, drawn, config.V, dtype=law, device=device),
            drafted_f_hat_BCPP=torch.empty(B, *config.latent, dtype=latent, device=device),
        )
        buffers.clear()
        return buffers

    def clear(self) -> None:
        self.tokens_BL.fill_(-1)
        self.raw_BLC.zero_()
        self.f_hat_BCPP.zero_()


class Launcher:
    """The memory of a decode and its way to the device, here kernel by kernel; one decode at a time."""

    def __init__(self, models: ModelPair, B: int, new_cache: NewCache, halves: int = 2) -> None:
        self.caches = {"draft": new_cache(models.draft, B, halves), "target": new_cache(models.target, B, halves)}
        self.buffers = Buffers.new(models, B)

    def begin(self, noise: Noise, labels_B: Tensor) -> tuple[Noise, Tensor]:
        """Start a decode on empty buffers; return its numbers and labels where the work will read them."""
        return noise, labels_B

    def run(self, key: Hashable, compute: Callable[[], T], lasting: bool = False) -> T:
        """Do device work, without a host synchronisation; equal keys must mean equal work on equal buffers.

        `lasting`: what it returns is read after other work has run; else it must be read before.
        """
        return compute()


@dataclass
class Side:
    """One network in one decode: how its condition is made, its cache and what it was asked to compute."""

    name: str
    network: Network
    labels_B: Tensor
    make_condition: Callable[[Network, Tensor], Condition]
    launcher: Launcher
    cache: KVCache = field(init=False)
    calls: list[int] = field(init=False)  # of every image
    rows: list[int] = field(init=False)  # likewise

    def __post_init__(self) -> None:
        self.cache = self.launcher.caches[self.name]
        self.calls, self.rows = [0] * len(self.labels_B), [0] * len(self.labels_B)

    @cached_property
    def condition(self) -> Condition:
        """All that depends on the images' conditions, computed when it is first needed."""
        compute = partial(self.make_condition, self.network, self.labels_B)
        return self.launcher.run(("condition", self.name), compute, lasting=True)

    def condition_of(self, images: list[int]) -> Condition:
        B = len(self.calls)
        if images == list(range(B)):
            return self.condition
        rows = [first + b for first in range(0, len(self.condition.cond_RD), B) for b in images]
        return self.condition.rows(torch.tensor(rows, device=self.network.device))


@dataclass
class DecodeState(Buffers):
    """One decode in flight, on the launcher's buffers."""

    request: Request  # what is drawn
    noise: Noise  # the numbers
    vae: Codec  # quantiser
    draft: Side  # the small network's side
    target: Side  # the large network's side
    launcher: Launcher  # how device work is done: launched, or recorded and replayed
    done: list[int]  # number of final scales of every image
    writes_BS: Tensor  # how often each scale was made final
    rounds: list[list[Round]]  # of every image
    draft_lens: list[int]  # what the draft length's rule keeps for every image
    # named tensors of the final positions, or None when not kept
    intermediates: Intermediates | None = field(repr=False, default=None)
    law_BLV: Tensor | None = field(repr=False, default=None)  # that final tokens were drawn from, or None when not kept
    # (network, first scale, one number: are its logits finite?) of passes that decide, and that nobody waited for
    unchecked: list[tuple[str, int, Tensor]] = field(repr=False, default_factory=list)

    @property
    def pyramid(self) -> ScalePyramid:
        return self.target.network.pyramid

    @classmethod
    def begin(
        cls, models: ModelPair, request: Request, noise: Noise, launcher: Launcher, condition_rows: ConditionRows,
        keep: bool,
    ) -> Self:  # fmt: skip
        """Return the state before the first round, in the launcher's memory; `keep` allocates the intermediates."""
        B = request.B
        noise, labels_B = launcher.begin(noise, noise.labels(models.target.config.classes))

        def condition(network: Network, labels_B: Tensor) -> Condition:
            return condition_rows(network, request, labels_B)

        return cls(
            **vars(launcher.buffers), request=request, noise=noise, vae=models.vae,
            draft=Side("draft", models.draft, labels_B, condition, launcher),
            target=Side("target", models.target, labels_B, condition, launcher), launcher=launcher, done=[0] * B,
            writes_BS=torch.zeros(B, models.pyramid.S, dtype=torch.int64), rounds=[[] for _ in range(B)],
            draft_lens=[0] * B, intermediates=_empty_intermediates(models, request) if keep else None,
        )  # fmt: skip

    def run(self, images: list[int], key: tuple[Hashable, ...], work: Callable[[*Ts], T], *given: *Ts) -> T:
        """Do device work for one group of images: where that of a whole batch becomes a recording, or does not.

        `key` says what the work is, together with the request's filter and guidance, and equal ones must mean equal
        arguments; () where it must not be recorded. There is no host synchronisation in it.
        """
        if not key or len(images) < len(self.done):
            return work(*given)
        request = self.request
        asked = (request.guidance, request.top_k, request.top_p, request.filters)
        return self.launcher.run((*key, *asked), partial(work, *given))


def _empty_intermediates(models: ModelPair, request: Request) -> Intermediates:
    """NaN everywhere, so that what was never written cannot compare equal."""
    pyramid, config, dtype = models.pyramid, models.target.config, models.target.dtype
    drawn, B, R = pyramid.draws.L, request.B, request.R
    logits, nan = torch.promote_types(dtype, torch.float32), partial(torch.full, fill_value=torch.nan)
    return Intermediates(
        x_RLD=nan((R, pyramid.L, config.D), device=models.device, dtype=dtype),
        rows_RLV=nan((R, drawn, config.V), device=models.device, dtype=logits),
        guided_BLV=nan((B, drawn, config.V), device=models.device, dtype=logits),
        f_hat_SBCPP=nan((pyramid.S, B, *config.latent), device=models.device, dtype=models.vae.dtype),
    )


def update_state_with_accepted_tokens(
    state: DecodeState, parts: LatentParts, images: list[int], first: int, tokens_by_scale: list[Tensor],
    finished: list[int],
) -> None:  # fmt: skip
    """Make scales first..first+finished-1 of every image final, and roll both caches back to them.

    The images are one group, whose round began at scale `first`; `tokens_by_scale` are final tokens (b,l) of every
    scale of its window, and `finished` says how many of them each image finishes.

    Effects: on tokens, f_hat, the next raw input, caches and done. A cache's entries of a scale depend on the scales
    before it alone, so those of the last final scale stay valid even where its tokens were corrected.
    """
    pyramid = state.pyramid
    groups = [[k for k, count in enumerate(finished) if count > offset] for offset in range(max(finished))]
    chosen = [[images[k] for k in group] for group in groups]
    for offset, group in enumerate(groups):
        rows = place(chosen[offset], len(state.done))
        state.tokens_BL[rows, pyramid.draws.span(first + offset)] = pick(tokens_by_scale[offset], group)
        state.writes_BS[rows, first + offset] += 1
    # every mixture of counts would be a recording of its own
    key = ("update", first, finished[0]) if len(set(finished)) == 1 else ()
    f_hats = state.run(images, key, accumulate_scales, state, parts, first, chosen)
    if state.intermediates is not None:
        for offset, f_hat in enumerate(f_hats):
            state.intermediates.f_hat_SBCPP[first + offset, place(chosen[offset], len(state.done))] = f_hat
    for image, count in zip(images, finished, strict=True):
        state.done[image] = first + count
        for side in (state.draft, state.target):
            side.cache.rollback(image, pyramid.begin(first + count))


def accumulate_scales(state: DecodeState, parts: LatentParts, first: int, chosen: list[list[int]]) -> list[Tensor]:
    """Add scales from `first` on to f_hat, each of the images chosen for it; return f_hat after each. Device work."""
    pyramid, f_hats = state.pyramid, []
    for si, images in enumerate(chosen, first):
        rows = place(images, len(state.done))
        idx_bl = pick(state.tokens_BL[:, pyramid.draws.span(si)], images)
        f_hats.append(parts.accumulate(pick(state.f_hat_BCPP, images), idx_bl, si, state.vae.quantizer, pyramid))
        state.f_hat_BCPP[rows] = f_hats[-1]
        if si + 1 < pyramid.S:
            state.raw_BLC[rows, pyramid.span(si + 1)] = parts.next_input(f_hats[-1], si + 1, pyramid)
    return f_hats
