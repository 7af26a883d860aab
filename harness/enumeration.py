"""A noise source that enumerates outcomes: every branch of the production decoder, with its exact probability.

Promise: the law returned is the law of `SpeculativeDecoder.decode` over its tokens when every number is uniform and
numbers of different addresses (scale, position, stream) are independent. A number that is read again, by anybody, is
the same number: it is known to lie in an interval, and each reading splits that interval.

How: the numbers handed out are names (cells), not values. Only the two functions that turn a number into a decision,
`Parts.draw` and `Parts.keep_drafted`, are replaced: by inversion of the cumulative law on [0, 1), which has the law of
a race, and by u < target/draft. Everything between reading and deciding is the production code. One decode walks as
many branches as the batch has images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor

from harness.models.pair import ModelPair
from harness.noise import SeededNoise
from harness.request import Request
from harness.speculative.parts import PARTS, Parts
from harness.speculative.sampler import Options, SpeculativeDecoder

Law = dict[tuple[int, ...], float]
LANES = 256
TINY = 1e-15  # an interval this short is rounding, not a branch


@dataclass
class _Lane:
    """One branch: the choices to repeat, those made, the branches left aside, and what is known of every number."""

    prefix: list[int]
    made: list[int] = field(default_factory=list)
    aside: list[list[int]] = field(default_factory=list)
    known: dict[int, tuple[float, float]] = field(default_factory=dict)
    weight: float = 1.0

    def decide(self, cell: int, edges: list[float]) -> int:
        """Return which piece between `edges` (ascending, within [0, 1]) the number of `cell` lies in."""
        low, high = self.known.get(cell, (0.0, 1.0))
        bounds = [0.0, *edges, 1.0]
        pieces = [(max(low, a), min(high, b)) for a, b in pairwise(bounds)]
        possible = [k for k, (a, b) in enumerate(pieces) if b - a > TINY]
        step = len(self.made)
        chosen = self.prefix[step] if step < len(self.prefix) else possible[0]
        if step >= len(self.prefix):
            self.aside += [[*self.made, k] for k in possible[1:]]
        self.made.append(chosen)
        a, b = pieces[chosen]
        self.weight *= (b - a) / (high - low)
        self.known[cell] = (a, b)
        return chosen


class CellNoise:
    """Hands out names of numbers: cell · lanes + lane, in float64, so that indexing and concatenation carry them."""

    def __init__(self, models: ModelPair, request: Request) -> None:
        self.models, self.request = models, request
        self.cells: dict[tuple[int, str], int] = {}

    def labels(self, classes: int) -> Tensor:
        """Return the request's labels."""
        assert self.request.labels is not None
        return torch.tensor(self.request.labels)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        """Return names (B,l) of the numbers of one address."""
        pyramid, B = self.models.pyramid, self.request.B
        begin = self.cells.setdefault((si, stream), len(self.cells) * pyramid.L) + pyramid.begin(si)
        cell_l = torch.arange(begin, begin + pyramid.tokens(si), dtype=torch.float64)
        return cell_l * B + torch.arange(B, dtype=torch.float64)[:, None]

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        """Return the names repeated over V."""
        return self.uniform(si, stream, reader)[..., None].expand(-1, -1, self.models.target.config.V)


def _deciding(lanes: list[_Lane], parts: Parts) -> Parts:
    """Replace the two functions that turn numbers into decisions."""

    def lane_and_cell(name: float) -> tuple[_Lane, int]:
        return lanes[int(name) % len(lanes)], int(name) // len(lanes)

    def draw(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
        names, laws = E_BnV[..., 0].flatten().tolist(), probs_BnV.flatten(0, 1).tolist()
        chosen = []
        for name, law in zip(names, laws, strict=True):
            lane, cell = lane_and_cell(name)
            chosen.append(lane.decide(cell, [min(edge, 1.0) for edge in list(accumulate(law))[:-1]]))
        return torch.tensor(chosen).view(probs_BnV.shape[:2])

    def keep_drafted(u_Bn: Tensor, draft_Bn: Tensor, target_Bn: Tensor) -> Tensor:
        ratios = (target_Bn / draft_Bn).clamp_max(1.0).flatten().tolist()
        kept = []
        for name, ratio in zip(u_Bn.flatten().tolist(), ratios, strict=True):
            lane, cell = lane_and_cell(name)
            kept.append(lane.decide(cell, [ratio]) == 0)
        return torch.tensor(kept).view(u_Bn.shape)

    return replace(parts, draw=draw, keep_drafted=keep_drafted)


def output_law(
    models: ModelPair,
    request: Request,
    options: Options,
    parts: Parts = PARTS,
    prepare: Callable[[Parts], Parts] = lambda parts: parts,
) -> tuple[Law, int]:
    """Return the exact law of the decoder's tokens, and the number of branches walked.

    Args:
        models: float64, small.
        request: one image.
        options: how to speculate; any policy.
        parts: the decoder's parts.
        prepare: changes the parts last of all, around the deciding functions: where a test plants a bug in those.
    """
    law: Law = {}
    waiting: list[list[int]] = [[]]
    branches = 0
    options = replace(options, keep_intermediates=False)
    while waiting:
        lanes = [_Lane(waiting.pop()) for _ in range(min(LANES, len(waiting)))]
        labels = cast(tuple[int, ...], request.labels) * len(lanes)
        batch = replace(request, labels=labels, images=None, count=len(lanes))
        decoder = SpeculativeDecoder(models, options, prepare(_deciding(lanes, parts)))
        trace = decoder.decode(batch, cast(SeededNoise, CellNoise(models, batch)))
        for lane, tokens in zip(lanes, trace.tokens_BL.tolist(), strict=True):
            law[tuple(tokens)] = law.get(tuple(tokens), 0.0) + lane.weight
            waiting += lane.aside
        branches += len(lanes)
    return law, branches
