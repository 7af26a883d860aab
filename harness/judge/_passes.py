"""One pass of the target, as it should have been, and with one thing changed: its mask, or what its cache holds.

Promise: every change is one that decoders are seen to make, and is named by the part that makes it. Where a mask that
hides all that is cached and a cache that lost it give the same numbers, both are named.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.judge._evidence import Evidence
from harness.judge._rounded import SHORT, rounded
from harness.judge._suspects import proposed, round_of
from harness.models.network import Condition, Network
from harness.protocol import Round
from harness.protocol.pyramid import ScalePyramid
from harness.reference import block_causal, family_of, prefix_inputs
from harness.reference.sequential import GrowingCache
from harness.wording import count_of

# Of an image's two rows and another image's two, those that stand for its own.
_HALVES = {"unconditional": [0, 3], "conditional": [2, 1], "unconditional (conditional ones)": [0, 2]}
MOST_IMAGES = 8  # of a batch whose rows a cache may hold in the place of an image's own
SHORT_CACHE = "the last cached scale is missing, as after a rollback too far"
MOST_READERS = 4  # of a batch whose conditions or texts the two rows of an image may have


@dataclass(frozen=True)
class TargetPass:
    """A pass of the target over scales first..last of one image, scales before them cached."""

    evidence: Evidence
    tokens_1L: Tensor  # of the image, of drafted scales as they were drafted
    label: int  # of the image
    first: int
    last: int
    is_draft: bool = False  # it is the draft's

    @property
    def network(self) -> Network:
        return self.evidence.models.draft if self.is_draft else self.evidence.models.target

    @property
    def condition(self) -> Condition:
        label_1 = torch.tensor([self.label], device=self.network.device)
        return family_of(self.network).condition(self.network, self.evidence.request, label_1)

    @torch.inference_mode()
    def window(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x_RnD of the pass, the right mask_11nK, and where its rows sit."""
        network, pyramid = self.network, self.evidence.models.pyramid
        K, end = pyramid.begin(self.first), pyramid.end(self.last)
        xs, _ = prefix_inputs(network, self.evidence.models.vae, self.condition, self.tokens_1L, self.last + 1)
        mask_11nK = block_causal(pyramid, network.device, network.dtype)[:, :, K:end, :end]
        return torch.cat(xs, 1)[:, K:], mask_11nK, family_of(network).positions(network, self.first, self.last)

    @torch.inference_mode()
    def hidden(
        self, mask_nK: Tensor | None = None, cache: GrowingCache | None = None, depth: int = 0,
        condition: Condition | None = None,
    ) -> Tensor:  # fmt: skip
        """Return h_RnD of the pass.

        `mask_nK` says who sees whom (None: as it must be), `cache` holds the scales before (None: as they must be;
        more rows than these are seen by all), `depth` is how many blocks are run (0: all), and `condition` what
        they are conditioned on (None: its own).
        """
        condition, K = condition or self.condition, self.evidence.models.pyramid.begin(self.first)
        condition = replace(condition, blocks=condition.blocks[: depth or None])
        x_RnD, mask_11nK, positions = self.window()
        cache = self.cache() if cache is None else cache
        if mask_nK is not None:
            mask_11nK = torch.zeros_like(mask_11nK).masked_fill(~mask_nK, float("-inf"))
        if isinstance(cache, _WrittenOnce):
            cache.begin = K
        elif isinstance(cache, _ByLevel):
            level_n = torch.tensor(self.evidence.models.pyramid.levels()[K : K + x_RnD.shape[1]], device=x_RnD.device)
            cache.level_K = torch.cat((cache.level_K.to(level_n), level_n))
            hidden_nK = level_n[:, None] < cache.level_K
            mask_11nK = mask_11nK.new_zeros(1, 1, *hidden_nK.shape).masked_fill(hidden_nK, float("-inf"))
        elif cache.layers and (more := cache.layers[0][0].shape[2] - K) > 0:
            mask_11nK = torch.cat((mask_11nK.new_zeros(1, 1, x_RnD.shape[1], more), mask_11nK), 3)
        return self.network.hidden(x_RnD, condition, cache, mask_11nK, positions)

    @torch.inference_mode()
    def cache(self) -> GrowingCache:
        """Return keys and values of the scales before it."""
        cache = GrowingCache()
        if self.first:
            x_RKD, mask_11KK, positions = replace(self, first=0, last=self.first - 1).window()
            self.network.hidden(x_RKD, self.condition, cache, mask_11KK, positions)
        return cache

    def rows(self, hidden_RnD: Tensor, si: int, condition: Condition | None = None) -> Tensor:
        """Return logits_RlV of one of its scales; `condition` as `hidden` has it."""
        pyramid = self.evidence.models.pyramid
        l = slice(pyramid.begin(si) - pyramid.begin(self.first), pyramid.end(si) - pyramid.begin(self.first))
        return self.evidence.models.target.logits(hidden_RnD[:, l], condition or self.condition)


def of_other_rows(made: TargetPass) -> Iterator[tuple[str, str, Condition]]:
    """Yield (component, clause, condition) of rows that read what others of the batch do; nothing without texts."""
    evidence, network = made.evidence, made.network
    labels_b = evidence.numbers.labels(network.config.classes)[:MOST_READERS]
    if len(labels_b) == 1 or not evidence.request.texts:
        return
    every = family_of(network).condition(network, evidence.request, labels_b)
    for rows in product(range(len(every.texts)), repeat=evidence.request.R // evidence.request.B):
        theirs = every.rows(torch.tensor(rows, device=network.device))
        mixed = replace(made.condition, texts=theirs.texts)
        yield "text", "whose rows attend to texts of other rows of the batch", mixed
        yield "rows", "whose rows have the conditions of other rows of the batch", theirs


def last_of(turn: Round, si: int, pyramid: ScalePyramid) -> int:
    """Return the last scale of a round's pass: of its rows, where they end at one, or else as far as it is known.

    A bonus scale is computed whether or not it can be finished; a pass without a cache computes earlier scales, too.
    """
    drafted_last = min(turn.first + turn.drafted - 1, pyramid.S - 1)
    ends = {pyramid.begin(turn.first) + turn.target_rows, turn.target_rows}
    least = max(si, drafted_last, turn.first + turn.finished - 1)  # a round may say less than it made final
    for last in range(least, min(drafted_last + 2, pyramid.S)):
        if pyramid.end(last) in ends:
            return last
    return min(max(least, drafted_last + turn.bonus), pyramid.S - 1)


def passes(evidence: Evidence, image: int, si: int) -> Iterator[TargetPass]:
    """Yield the pass that made a scale, as far as rounds tell: with the final tokens, with the drafted ones, and over
    all scales that its rows are enough for.
    """
    label = int(evidence.numbers.labels(evidence.models.target.config.classes)[image])
    turn, tokens_1L = round_of(evidence, image, si), evidence.actual.tokens_BL[image : image + 1]
    if turn is None:
        yield TargetPass(evidence, tokens_1L, label, si, si)
        if si:
            yield TargetPass(evidence, tokens_1L, label, 0, si)
        return
    last = last_of(turn, si, evidence.models.pyramid)
    yield TargetPass(evidence, tokens_1L, label, turn.first, last)
    if turn.finished <= last - turn.first:  # later scales were dropped: the pass saw what was drafted there
        for proposed_1L in proposed(evidence, image, range(turn.first, last)):
            yield TargetPass(evidence, proposed_1L, label, turn.first, last)
    for begin in range(turn.first):  # it had earlier scales to catch up with, or caches nothing
        if evidence.models.pyramid.end(last) - evidence.models.pyramid.begin(begin) == turn.target_rows:
            yield TargetPass(evidence, tokens_1L, label, begin, last)


def masks(made: TargetPass) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (component, clause, who sees whom) of every known wrong mask of a pass that differs from the right one."""
    pyramid = made.evidence.models.pyramid
    K, end = pyramid.begin(made.first), pyramid.end(made.last)
    level_K = torch.tensor(pyramid.levels()[:end], device=made.evidence.models.device)
    position_K = torch.arange(end, device=level_K.device)
    level_n1, position_n1, cached_K = level_K[K:, None], position_K[K:, None], position_K < K
    right_nK, n = level_n1 >= level_K, end - K
    before = pyramid.begin(max(made.first - 1, 0))  # where a cache ends that lost its last scale
    kept_K, level_m = (position_K < before) | ~cached_K, level_K[before : before + n]
    corner_nn = level_K[:n, None] >= level_K[:n]
    candidates = (
        ("mask or cache", f"none of the {K} cached positions is seen", right_nK & ~cached_K),
        ("mask", "rows see the whole window, later scales too", torch.ones_like(right_nK)),
        ("mask", "rows see the scale after their own, too", level_n1 + 1 >= level_K),
        ("mask", "rows do not see later tokens of their own scale", position_n1 >= position_K),
        ("mask", "a causal mask is aligned at the top left", position_n1 - K >= position_K),
        ("mask", "the mask is the top-left corner of the whole one",
            torch.cat((torch.ones(n, K, dtype=torch.bool, device=level_K.device), corner_nn), 1)),
        ("mask", "the mask is the first rows of the whole one", level_K[:n, None] >= level_K),
        ("mask", "rows see their own scale and what is cached alone", (level_n1 == level_K) | cached_K),
        ("mask", "rows see their own scale alone", level_n1 == level_K),
        ("mask", "rows do not see their own scale", level_n1 > level_K),
        ("mask", "rows see what is cached alone", cached_K.expand(n, -1)),
        ("cache", SHORT_CACHE, right_nK & kept_K),
        ("cache", f"{SHORT_CACHE}, and mask rows are counted from its end",
            F.pad(level_m[:, None] >= level_m, (K, 0), value=True) & kept_K),
        ("cache", f"{SHORT_CACHE}, and mask columns are counted from its end",
            F.pad(level_n1 >= level_m, (K, 0), value=True) & kept_K),
        ("mask", "position 0 is not seen", right_nK & (position_K > 0)),
        ("mask", "rows see a position more than their scale has", F.pad(right_nK[:, :-1], (1, 0), value=True)),
        ("mask", "rows do not see the last position of their scale", F.pad(right_nK[:, 1:], (0, 1), value=False)),
    )  # fmt: skip
    late = [
        ("mask", f"rows from scale {si} on do not see {what}", right_nK & ~((level_n1 >= si) & hidden_K))
        for si in range(made.first + 1, made.last + 1)
        for what, hidden_K in (("position 0", position_K == 0), ("what is cached", cached_K))
    ]
    near = [
        ("mask", f"rows see no scale of their pass more than {k} before their own",
            right_nK & ((level_n1 - level_K <= k) | cached_K))
        for k in range(1, made.last - made.first)
    ]  # fmt: skip
    for component, clause, mask_nK in (*candidates, *late, *near):
        if not torch.equal(mask_nK, right_nK):
            yield component, clause, mask_nK


class _WrittenOnce(GrowingCache):
    """Keys and values by position that stay as they were first written."""

    begin = 0  # of the rows that are written next

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        """Write what there is nothing of; return all up to the last new row."""
        end = self.begin + k_RHnc.shape[2]
        if layer in self.layers:
            old = self.layers[layer]
            new = slice(old[0].shape[2] - self.begin, None)
            k_RHnc, v_RHnc = (torch.cat((a, b[:, :, new]), 2) for a, b in zip(old, (k_RHnc, v_RHnc), strict=True))
        self.layers[layer] = (k_RHnc, v_RHnc)
        return k_RHnc[:, :, :end], v_RHnc[:, :, :end]


class _ByLevel(GrowingCache):
    """Keys and values that keep the scale that they are of; later ones are hidden, be they cached."""

    level_K = torch.zeros(0)


Layers = dict[int, tuple[Tensor, Tensor]]


def caches(made: TargetPass, image: int) -> Iterator[tuple[str, str, GrowingCache]]:
    """Yield (component, clause, cache) of usual mistakes with what a pass finds in its cache, each to be used once."""
    yield from _with_empty(made)
    if not made.first:
        return
    right, last = made.cache().layers, made.evidence.models.pyramid.begin(made.first - 1)
    for word, dtype in SHORT.items():
        yield "precision", f"cached keys and values are rounded to {word}", _of(right, partial(rounded, dtype=dtype))
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "cached keys and values are those of the other half": lambda kv: kv.flip(0),
        "the last cached scale is zeros": lambda kv: torch.cat((kv[:, :, :last], 0 * kv[:, :, last:]), 2),
        "cached keys and values are zeros": torch.zeros_like,
    }
    for clause, change in changes.items():
        yield "cache", clause, _of(right, change)
    for clause, cache in (*_of_others(made, right, image), *_not_rolled_back(made, image)):
        yield "cache", clause, cache


def _with_empty(made: TargetPass) -> Iterator[tuple[str, str, GrowingCache]]:
    """Yield caches whose empty positions are seen: a spare one, or all that are left of one as long as an image."""
    pyramid, network, layers = made.evidence.models.pyramid, made.network, made.cache().layers
    config, R = network.config, made.evidence.request.R // made.evidence.request.B
    for count in {1, pyramid.L - pyramid.end(made.last)} - {0}:
        shape = R, config.H, count, config.D // config.H
        empty = torch.zeros(shape, dtype=network.dtype, device=network.device)
        cache = GrowingCache()
        for layer in range(config.depth):
            keys, values = layers.get(layer, (empty[:, :, :0], empty[:, :, :0]))
            cache.layers[layer] = torch.cat((keys, empty), 2), torch.cat((values, empty), 2)
        yield "mask", f"rows see {count_of(count, 'empty position')} of the cache, too", cache


def _of_others(made: TargetPass, right: Layers, image: int) -> Iterator[tuple[str, GrowingCache]]:
    """Yield caches that hold what belongs to another image, or to the draft, as a whole and in part."""
    evidence, models = made.evidence, made.evidence.models
    known = evidence.numbers.labels(models.target.config.classes).tolist()
    for other in [b for b in range(evidence.request.B) if b != image][:MOST_IMAGES]:
        tokens_1L = evidence.actual.tokens_BL[other : other + 1]
        theirs = replace(made, tokens_1L=tokens_1L, label=known[other]).cache()
        whole = _of(theirs.layers, lambda kv: kv)
        yield f"cached keys and values are those of image {other} of the batch", whole
        for half, rows in _HALVES.items() if len(right[0][0]) == 2 else ():
            mixed = _of(right, lambda a, b, rows=rows: torch.cat((a, b))[rows], theirs.layers)
            yield f"the {half} rows of the cache are those of image {other} of the batch", mixed
    ours, drafts = ((each.D, each.H, each.depth) for each in (models.target.config, models.draft.config))
    if ours == drafts:
        of_draft = replace(made, is_draft=True).cache()
        for si in range(made.first):
            mixed = _of(right, partial(_put, span=models.pyramid.span(si)), of_draft.layers)
            yield f"cached keys and values of scale {si} are the draft's", mixed
        yield "cached keys and values are the draft's", of_draft


def _not_rolled_back(made: TargetPass, image: int) -> Iterator[tuple[str, GrowingCache]]:
    """Yield caches that keep what rejected scales wrote: the rounds before are gone through as they were drafted."""
    rounds = made.evidence.actual.rounds[image] if made.evidence.actual.rounds else []
    turns = [turn for turn in rounds if turn.first < made.first]
    if not turns or turns[0].first or any(a.first + a.finished != b.first for a, b in pairwise(turns)):
        return
    for clause, cache in (
        ("keys and values of a rejected scale stay as they were first written", _WrittenOnce()),
        ("rows of rejected scales are still cached", GrowingCache()),
        ("rows of rejected scales are still cached, and seen by their own and later scales alone", _ByLevel()),
    ):
        for turn in turns:
            before = [each for each in passes(made.evidence, image, turn.first) if each.first == turn.first]
            before[min(1, len(before) - 1)].hidden(cache=cache)
        yield clause, cache


def _put(tensor: Tensor, other: Tensor, span: slice) -> Tensor:
    return torch.cat((tensor[:, :, : span.start], other[:, :, span], tensor[:, :, span.stop :]), 2)


def _of(layers: Layers, change: Callable[..., Tensor], others: Layers | None = None) -> GrowingCache:
    """Return a cache of changed keys and values; `change` gets those of others, too, where there are any."""
    cache = GrowingCache()
    for i, kv in layers.items():
        changed = [change(*pair) for pair in (zip(kv, others[i], strict=True) if others else zip(kv, strict=True))]
        cache.layers[i] = (changed[0], changed[1])
    return cache
