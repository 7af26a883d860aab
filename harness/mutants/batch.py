"""Planted bugs of the batch: images that meet each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.decoders import Factory
from harness.models import ModelPair
from harness.mutants._mutant import Mutant, labelled, numbered, options_of, parts, patched, production
from harness.mutants.acceptance import whole_scales
from harness.protocol import Contract, Implementation, Settings
from harness.speculative import Buffers, CacheWindow, DecodeState, DraftLength, KVCache
from harness.speculative.sampler import SpeculativeDecoder


class _SharedLength:
    """A draft length that shrinks for everybody when one image rejects."""

    def __init__(self, length: DraftLength) -> None:
        self.length, self.now = length, 99

    def begin(self) -> int:
        """Start a decode at the full length."""
        self.now = 99
        return self.length.begin()

    def count(self, first: int, current: int, S: int) -> int:
        """Return the batch's length."""
        return min(self.now, self.length.count(first, current, S))

    def after(self, current: int, accepted_all: bool, S: int) -> int:
        """Note what one image did."""
        self.now = self.now if accepted_all else 1
        return self.length.after(current, accepted_all, S)


def _shared_length(models: ModelPair, settings: Settings) -> Implementation:
    decoder = production(models, settings)
    decoder.length = _SharedLength(decoder.length)  # type: ignore[assignment]
    return decoder


class _InterleavedCache(KVCache):
    """Take the rows of a part of the batch for pairs (conditional, unconditional) of neighbours."""

    def window(self, images: list[int]) -> CacheWindow:
        """Return a view of the wrong rows."""
        window = super().window(images)
        if window.rows_R is not None:
            rows = [2 * b for b in images] + [2 * b + 1 for b in images]
            window.rows_R = torch.tensor(rows, device=self.kv.device)
        return window


def _numbers(change: Callable[[Tensor, int], Tensor], *contracts: Contract) -> Factory:
    """Plant numbers that depend on the batch: (numbers, its size) -> numbers; for decoders of some contracts."""
    return numbered(lambda decoder, request, noise: lambda numbers, *at: (
        change(numbers, request.B) if decoder.contract in contracts else numbers))  # fmt: skip


class _OneCache(SpeculativeDecoder):
    """Let images share a round that have the same scale before them, whatever their draft has seen."""

    def _groups(self, state: DecodeState) -> list[tuple[tuple[int, int, int, int], list[int]]]:
        groups: dict[tuple[int, int, int, int], list[int]] = {}
        for (done, wanted, _, target), images in super()._groups(state):
            groups.setdefault((done, wanted, 0, target), []).extend(images)
        return [(key, sorted(images)) for key, images in sorted(groups.items())]


class _LongestCache(_OneCache):
    """Take the longest cache of the draft for everybody's: what the others lack is never computed."""

    def _groups(self, state: DecodeState) -> list[tuple[tuple[int, int, int, int], list[int]]]:
        groups, lengths = super()._groups(state), state.draft.cache.lengths
        for _, images in groups:
            longest = max(lengths[image] for image in images)
            for image in images:
                lengths[image] = longest
        return groups


def _buffers(change: Callable[[ModelPair, Buffers], Buffers]) -> Factory:
    """Plant a bug in how a decode's memory is made."""
    true = Buffers.new

    def new(cls: type[Buffers], models: ModelPair, B: int) -> Buffers:
        return change(models, true(models, B))

    return patched({"harness.speculative._state:Buffers.new": classmethod(new)})


SHARED_LENGTH = Mutant("batch.shared-length", "one image's rejection shortens everybody's drafts",
    "a dynamic length kept once for the batch", _shared_length)  # fmt: skip
INTERLEAVED = Mutant("batch.interleaved", "cache rows of part of a batch are taken for neighbouring pairs",
    "another order of the guidance rows", parts(new_cache=_InterleavedCache))  # fmt: skip
AVERAGE = Mutant("batch.average", "a scale is accepted when most images would accept it",
    "acceptance averaged over the batch", whole_scales(
        lambda whole_bs: (whole_bs.double().mean(0) > 0.5).expand_as(whole_bs)))  # fmt: skip
NEIGHBOURS_NUMBERS = Mutant("batch.neighbours-numbers", "contract B: an image reads its neighbour's numbers",
    "rows gathered after the batch was reordered; each image still follows the target's law",
    _numbers(lambda numbers, B: numbers.roll(1, 0), Contract.LAW), alone=True)  # fmt: skip
GROWING = Mutant("batch.growing", "numbers depend on the size of the batch",
    "one generator for whatever batch there is",
    _numbers(lambda numbers, B: numbers.roll(B - 1, 1), *Contract))  # fmt: skip
GROWING_LAW = Mutant("batch.growing-law", "contract B: numbers depend on the size of the batch",
    "one generator for whatever batch there is, which the law does not show",
    _numbers(lambda numbers, B: numbers.roll(B - 1, 1), Contract.LAW), alone=True)  # fmt: skip
FIRST_LABEL = Mutant("batch.first-label", "every image gets the first one's label",
    "a condition broadcast from one row", labelled(lambda labels: labels[:1] * len(labels)))  # fmt: skip
ONE_CACHE = Mutant("batch.one-cache", "images share a round though the draft has not seen the same scales of them",
    "a group by the scale alone", lambda models, settings: _OneCache(models, options_of(settings)))  # fmt: skip
LONGEST_CACHE = Mutant("batch.longest-cache", "the draft's longest cache of a group stands for everybody's",
    "one length a batch", lambda models, settings: _LongestCache(models, options_of(settings)))  # fmt: skip
LAWS_AS_TARGET = Mutant("batch.laws-as-target", "the draft's laws are kept in the target's precision",
    "one dtype for all buffers; a slice casts, an index does not", _buffers(lambda models, made: replace(
        made, drafted_probs_BLV=made.drafted_probs_BLV.to(models.target.dtype))))  # fmt: skip
INPUTS_AS_DRAFT = Mutant("batch.inputs-as-draft", "inputs are kept in the draft's precision",
    "a buffer that the draft fills first",
    _buffers(lambda models, made: replace(made, raw_BLC=made.raw_BLC.to(models.draft.dtype))))  # fmt: skip
