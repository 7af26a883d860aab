"""A noise source that enumerates outcomes: every branch of the production decoder, with its exact probability.

Promise: the law returned is the law of `SpeculativeDecoder.decode` over its tokens when every number is uniform and
numbers of different addresses (scale, position, stream) are independent. A number that is read again, by anybody, is
the same number: it is known to lie in an interval, and each reading splits that interval.

How: the numbers handed out are names (cells), not values. Only the two functions that turn a number into a decision,
`Parts.draw` and `Parts.keep_drafted`, are replaced: by inversion of the cumulative law on [0, 1), which has the law of
a race, and by u < target/draft. Everything between reading and deciding is the production code. A decode walks as many
branches as its batch has images.

Moot decisions (about a scale that the round drops, or a redraw where the drafted token stands) are not branched on:
one arbitrary choice stands for all, at full weight. Were such a choice to matter after all, the law would come out
wrong, so what is saved here cannot hide a mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from harness.models.pair import ModelPair
from harness.protocol.noise import SeededNoise
from harness.protocol.request import Request
from harness.reference.enumerate import JointLaw
from harness.speculative.parts import PARTS, Parts
from harness.speculative.sampler import Options, SpeculativeDecoder
from harness.speculative.state import DecodeState

LANES = 2048
TINY = 1e-15  # an interval this short is rounding, not a branch
Key = tuple[int, int, int, int]  # round, scale, call within the round, place: the order in which decisions matter


class _Decision(NamedTuple):
    """A number found in piece `chosen` of `pieces`, of which `possible` could have been."""

    cell: int
    chosen: int
    possible: list[int]
    pieces: list[tuple[float, float]]


@dataclass
class _Lane:
    """One branch: choices to repeat, those made so far, the branches left aside, and what is known of every number."""

    forced: dict[Key, int]
    made: dict[Key, int] = field(default_factory=dict)
    aside: list[dict[Key, int]] = field(default_factory=list)
    known: dict[int, tuple[float, float]] = field(default_factory=dict)
    weight: float = 1.0
    round: int = 0
    call: int = 0
    pending: dict[Key, _Decision] = field(default_factory=dict)
    guess: dict[int, tuple[float, float]] = field(default_factory=dict)  # known, if all that is pending matters
    moot: set[tuple[int, int]] = field(default_factory=set)  # (call, place) of redraws where the drafted token stands

    def decide(self, cell: int, si: int, place: int, edges: list[float]) -> int:
        """Return which piece between `edges` (ascending, within [0, 1]) the number of `cell` lies in."""
        low, high = self.guess.get(cell) or self.known.get(cell, (0.0, 1.0))
        pieces = list(pairwise([0.0, *edges, 1.0]))
        possible = [k for k, (a, b) in enumerate(pieces) if min(high, b) - max(low, a) > TINY]
        key = (self.round, si, self.call, place)
        arbitrary = possible[(cell * 2654435761 + place * 40503 >> 7) % len(possible)]
        chosen = self.forced.get(key, arbitrary)
        self.pending[key] = _Decision(cell, chosen, possible, pieces)
        a, b = pieces[chosen]
        self.guess[cell] = (max(low, a), min(high, b))
        return chosen

    def settle(self, end: int) -> None:
        """Close a round that made the scales before `end` final: weigh what mattered, forget the rest."""
        for key in sorted(self.pending):
            cell, chosen, possible, pieces = self.pending[key]
            _, si, call, place = key
            if si >= end or (call, place) in self.moot:
                continue
            if key not in self.forced:
                self.aside += [{**self.made, key: k} for k in possible if k != chosen]
            self.made[key] = chosen
            low, high = self.known.get(cell, (0.0, 1.0))
            a, b = max(low, pieces[chosen][0]), min(high, pieces[chosen][1])
            self.weight *= (b - a) / (high - low)
            self.known[cell] = (a, b)
        self.pending, self.guess, self.moot = {}, {}, set()
        self.round, self.call = self.round + 1, 0


class CellNoise:
    """Hands out names of numbers: cell · B + image, in float64, so that indexing and concatenation carry them.

    Args:
        models: whose pyramid and V shape the answers.
        request: with labels.
    """

    def __init__(self, models: ModelPair, request: Request) -> None:
        self.models, self.request = models, request
        self.streams: dict[str, int] = {}

    def labels(self, classes: int) -> Tensor:
        """Return the request's labels."""
        assert self.request.labels is not None
        return torch.tensor(self.request.labels)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        """Return names (B,l) of the numbers of one address."""
        pyramid, B = self.models.pyramid, self.request.B
        begin = self.streams.setdefault(stream, len(self.streams)) * pyramid.L + pyramid.begin(si)
        cell_l = torch.arange(begin, begin + pyramid.tokens(si), dtype=torch.float64)
        return cell_l * B + torch.arange(B, dtype=torch.float64)[:, None]

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        """Return the names repeated over V."""
        return self.uniform(si, stream, reader)[..., None].expand(-1, -1, self.models.target.config.V)


class _Walk:
    """One decode of many lanes: the deciding parts, and the end of a round."""

    def __init__(self, lanes: list[_Lane], models: ModelPair) -> None:
        self.lanes, self.levels = lanes, models.pyramid.levels()

    def parts(self, parts: Parts) -> Parts:
        """Replace the functions that turn numbers into decisions, and listen where a round ends."""
        finish = parts.update_state_with_accepted_tokens

        def update(
            state: DecodeState,
            parts: Parts,
            images: list[int],
            first: int,
            tokens_by_scale: list[Tensor],
            finished: list[int],
        ) -> None:
            finish(state, parts, images, first, tokens_by_scale, finished)
            for image, count in zip(images, finished, strict=True):
                self.lanes[image].settle(first + count)

        return replace(parts, draw=self.draw, keep_drafted=self.keep, update_state_with_accepted_tokens=update)

    def draw(self, probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
        """Draw by inversion of the cumulative law."""
        edges = [[_edges(law_V) for law_V in law_nV] for law_nV in probs_BnV.tolist()]
        return torch.tensor(self._decide(E_BnV[..., 0], edges))

    def keep(self, u_Bn: Tensor, draft_Bn: Tensor, target_Bn: Tensor) -> Tensor:
        """Keep with probability min(1, target/draft); the draw that follows is moot where the token is kept."""
        edges = [[[ratio] for ratio in ratio_n] for ratio_n in (target_Bn / draft_Bn).clamp_max(1.0).tolist()]
        kept_Bn = torch.tensor(self._decide(u_Bn, edges)) == 0
        for name, kept_n in zip(u_Bn[:, 0].tolist(), kept_Bn.tolist(), strict=True):
            lane = self._lane(name)
            lane.moot |= {(lane.call, place) for place, kept in enumerate(kept_n) if kept}
        return kept_Bn

    def _lane(self, name: float) -> _Lane:
        return self.lanes[int(name) % len(self.lanes)]

    def _decide(self, name_Bn: Tensor, edges: list[list[list[float]]]) -> list[list[int]]:
        chosen, count, L = [], len(self.lanes), len(self.levels)
        for name_n, edges_n in zip(name_Bn.tolist(), edges, strict=True):
            lane = self._lane(name_n[0])
            row = []
            for place, (name, edges_V) in enumerate(zip(name_n, edges_n, strict=True)):
                cell = int(name) // count
                row.append(lane.decide(cell, self.levels[cell % L], place, edges_V))
            lane.call += 1
            chosen.append(row)
        return chosen


def _edges(law_V: list[float]) -> list[float]:
    return [min(edge, 1.0) for edge in accumulate(law_V[:-1])]


def output_law(
    models: ModelPair,
    request: Request,
    options: Options,
    parts: Parts = PARTS,
    prepare: Callable[[Parts], Parts] = lambda parts: parts,
) -> tuple[JointLaw, int]:
    """Return the exact law of the decoder's tokens, and the number of branches walked.

    Args:
        models: float64, small.
        request: one image, with a label.
        options: how to speculate; any policy.
        parts: the decoder's parts.
        prepare: changes the parts last of all, around the deciding functions: where a test plants a bug in those.
    """
    law: JointLaw = {}
    waiting: list[dict[Key, int]] = [{}]
    branches = 0
    options = replace(options, keep_intermediates=False)
    while waiting:
        lanes = [_Lane(forced) for forced in waiting[-LANES:]]
        del waiting[-LANES:]
        labels = cast(tuple[int, ...], request.labels) * len(lanes)
        batch = replace(request, labels=labels, images=None, count=len(lanes))
        decoder = SpeculativeDecoder(models, options, prepare(_Walk(lanes, models).parts(parts)))
        trace = decoder.decode(batch, cast(SeededNoise, CellNoise(models, batch)))
        for lane, tokens in zip(lanes, trace.tokens_BL.tolist(), strict=True):
            law[tuple(tokens)] = law.get(tuple(tokens), 0.0) + lane.weight
            waiting += lane.aside
        branches += len(lanes)
    return law, branches
