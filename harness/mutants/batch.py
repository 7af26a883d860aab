"""Planted bugs of the batch: images that meet each other."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.decoders import Factory
from harness.models import ModelPair
from harness.mutants._mutant import Alone, Mutant, caching, labelled, numbered, of_class, patched, returning
from harness.mutants.acceptance import whole_scales
from harness.protocol import Contract
from harness.speculative import Buffers, CacheWindow, DecodeState, KVCache
from harness.speculative.sampler import SpeculativeDecoder


def _interleaved(window: CacheWindow, cache: KVCache, images: list[int]) -> CacheWindow:
    if window.rows_R is not None:
        window.rows_R = torch.tensor([2 * b + half for half in (0, 1) for b in images], device=cache.kv.device)
    return window


def _numbers(change: Callable[[Tensor, int], Tensor], *contracts: Contract) -> Factory:
    """Plant numbers that depend on the batch: (numbers, its size) -> numbers; for decoders of some contracts."""
    return numbered(lambda decoder, request, noise: lambda numbers, *at: (
        change(numbers, request.B) if decoder.contract in contracts else numbers))  # fmt: skip


_Key = tuple[int, int, int, int]  # scale, scales wanted of the draft, lengths of its cache and of the target's


def _grouped(change: Callable[[DecodeState, _Key], _Key], level_caches: bool = False) -> Factory:
    """Plant other groups of images that share a round, and perhaps the length of the draft's longest cache."""

    class Grouped(SpeculativeDecoder):
        def _groups(self, state: DecodeState) -> list[tuple[_Key, list[int]]]:
            groups: dict[_Key, list[int]] = {}
            for key, images in super()._groups(state):
                groups.setdefault(change(state, key), []).extend(images)
            lengths = state.draft.cache.lengths
            for images in groups.values() if level_caches else ():
                longest = max(lengths[image] for image in images)
                for image in images:
                    lengths[image] = longest
            return [(key, sorted(images)) for key, images in sorted(groups.items())]

    return of_class(Grouped)


def _one_cache(state: DecodeState, key: _Key) -> _Key:
    return key[0], key[1], 0, key[3]


def _shared_length(state: DecodeState, key: _Key) -> _Key:
    rejected = any(turn.accepted < turn.drafted for rounds in state.rounds for turn in rounds)
    return key[0], 1 if rejected else key[1], *key[2:]


def _buffers(change: Callable[[ModelPair, Buffers], Buffers]) -> Factory:
    """Plant a bug in how a decode's memory is made."""
    true = Buffers.new

    def new(cls: type[Buffers], models: ModelPair, B: int) -> Buffers:
        return change(models, true(models, B))

    return patched({"harness.speculative._state:Buffers.new": classmethod(new)})


# fmt: off
SHARED_LENGTH = Mutant("batch.shared-length", "one image's rejection shortens everybody's drafts",
    "a dynamic length kept once for the batch", _grouped(_shared_length))
INTERLEAVED = Mutant("batch.interleaved", "cache rows of part of a batch are taken for neighbouring pairs",
    "another order of the guidance rows", caching(window=returning(KVCache.window, _interleaved)))
AVERAGE = Mutant("batch.average", "a scale is accepted when most images would accept it",
    "acceptance averaged over the batch", whole_scales(
        lambda whole_bs: (whole_bs.double().mean(0) > 0.5).expand_as(whole_bs)))
NEIGHBOURS_NUMBERS = Alone("batch.neighbours-numbers", "contract B: an image reads its neighbour's numbers",
    "rows gathered after the batch was reordered; each image still follows the target's law",
    _numbers(lambda numbers, B: numbers.roll(1, 0), Contract.LAW))
GROWING = Mutant("batch.growing", "numbers depend on the size of the batch",
    "one generator for whatever batch there is", _numbers(lambda numbers, B: numbers.roll(B - 1, 1), *Contract))
GROWING_LAW = Alone("batch.growing-law", "contract B: numbers depend on the size of the batch",
    "one generator for whatever batch there is, which the law does not show",
    _numbers(lambda numbers, B: numbers.roll(B - 1, 1), Contract.LAW))
FIRST_LABEL = Mutant("batch.first-label", "every image gets the first one's label",
    "a condition broadcast from one row", labelled(lambda labels: labels[:1] * len(labels)))
ONE_CACHE = Mutant("batch.one-cache", "images share a round though the draft has not seen the same scales of them",
    "a group by the scale alone", _grouped(_one_cache))
LONGEST_CACHE = Mutant("batch.longest-cache", "the draft's longest cache of a group stands for everybody's",
    "one length a batch", _grouped(_one_cache, level_caches=True))
LAWS_AS_TARGET = Mutant("batch.laws-as-target", "the draft's laws are kept in the target's precision",
    "one dtype for all buffers; a slice casts, an index does not", _buffers(lambda models, made: replace(
        made, drafted_probs_BLV=made.drafted_probs_BLV.to(models.target.dtype))))
INPUTS_AS_DRAFT = Mutant("batch.inputs-as-draft", "inputs are kept in the draft's precision",
    "a buffer that the draft fills first",
    _buffers(lambda models, made: replace(made, raw_BLC=made.raw_BLC.to(models.draft.dtype))))
