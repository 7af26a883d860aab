"""A noise source that enumerates outcomes: every branch of the production decoder, with its exact probability.

Promise: the law returned is the law of `SpeculativeDecoder.decode` over its tokens when every number is uniform and
numbers of different addresses (scale, position, stream) are independent.

How: a branch is a box, an interval for every number that mattered so far, and its probability is the box's volume. A
decode is replayed from a box: a number is known to lie in its interval, a decision takes the widest piece of it, and
the box shrinks to that piece; the other pieces wait as boxes of their own. A number that is read again, by anybody, is
the same number. Only the two functions that turn a number into a decision, `Parts.draw` and `Parts.keep_drafted`, are
replaced: by inversion of the cumulative law on [0, 1), which has the law of a race, and by u < target/draft. All else
is the production code. A decode walks as many branches as its batch has images.

Moot decisions (about a scale that the round drops, or a redraw where the drafted token is accepted) shrink no box: one
arbitrary choice stands for all, at full weight. Were such a choice to matter after all, the law would come out wrong,
so what is saved here cannot hide a mistake.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import prod

import torch
from torch import Tensor

from harness.judge import require
from harness.laws._case import Case
from harness.models import ModelPair
from harness.protocol import ACCEPT, CORRECT, DRAFT, TOKEN, Request
from harness.reference import JointLaw, joint_law
from harness.speculative import PARTS, DecodeState, Parts
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from harness.wording import count_of

LANES = 2048
_STREAMS = (TOKEN, DRAFT, ACCEPT, CORRECT)
_TINY = 1e-15  # an interval this short is rounding, not a branch
_Interval = tuple[float, float]
_Box = dict[int, _Interval]  # by number ("cell"); what is not in it may lie anywhere in [0, 1)
_WHOLE = (0.0, 1.0)


def _pieces(interval: _Interval, edges: Sequence[float]) -> list[_Interval]:
    """Return the parts of an interval between `edges` (ascending, within [0, 1]); empty ones end before they begin."""
    low, high = interval
    return [(max(low, a), min(high, b)) for a, b in pairwise([0.0, *edges, 1.0])]


def _width(interval: _Interval) -> float:
    return interval[1] - interval[0]


@dataclass
class _Lane:
    """One branch in flight: its box, the boxes left aside, and the decisions of a round, which may prove moot."""

    box: _Box
    aside: list[_Box] = field(default_factory=list)
    pending: list[tuple[int, int, Sequence[float], int]] = field(default_factory=list)  # scale, number, edges, choice
    guess: _Box = field(default_factory=dict)  # the box, if all that is pending matters
    accepted: list[bool] = field(default_factory=list)  # by place, of drafted tokens: a redraw is moot then

    def decide(self, cell: int, si: int, edges: Sequence[float], moot: bool) -> int:
        """Return which piece between `edges` a number of scale `si` lies in."""
        pieces = _pieces(self.guess.get(cell) or self.box.get(cell, _WHOLE), edges)
        choice = max(range(len(pieces)), key=lambda k: _width(pieces[k]))
        if not moot:
            self.pending.append((si, cell, edges, choice))
            self.guess[cell] = pieces[choice]
        return choice

    def settle(self, end: int) -> None:
        """Close a round that made the scales before `end` final: what mattered, scale by scale, shrinks the box."""
        for si, cell, edges, choice in sorted(self.pending, key=lambda decision: decision[0]):
            if si < end:
                pieces = _pieces(self.box.get(cell, _WHOLE), edges)
                others = [piece for k, piece in enumerate(pieces) if k != choice and _width(piece) > _TINY]
                self.aside += [{**self.box, cell: piece} for piece in others]
                self.box[cell] = pieces[choice]
        self.pending, self.guess = [], {}


@dataclass(frozen=True)
class _CellNoise:
    """Numbers that are names, number · B + image, in float64, so that indexing and concatenation carry them."""

    models: ModelPair  # whose pyramid and V shape the answers
    request: Request  # with labels

    def labels(self, classes: int) -> Tensor:
        return torch.tensor(self.request.labels)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        """Return names (B,l) of the numbers of one address."""
        draws, B = self.models.pyramid.draws, self.request.B
        begin = _STREAMS.index(stream) * draws.L + draws.begin(si)
        cell_l = torch.arange(begin, begin + draws.counts[si], dtype=torch.float64)
        return cell_l * B + torch.arange(B, dtype=torch.float64)[:, None]

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        """Return the names repeated over V."""
        return self.uniform(si, stream, reader)[..., None].expand(-1, -1, self.models.target.config.V)


class _Walk:
    """One decode of many lanes: the deciding parts, and the end of a round."""

    def __init__(self, boxes: list[_Box], models: ModelPair) -> None:
        self.lanes, self.levels = [_Lane(box) for box in boxes], models.pyramid.draws.levels()

    def parts(self, parts: Parts) -> Parts:
        """Replace the functions that turn numbers into decisions, and listen where a round ends."""
        finish = parts.update_state_with_accepted_tokens

        def update(
            state: DecodeState, parts: Parts, images: list[int], first: int, tokens_by_scale: list[Tensor],
            finished: list[int],
        ) -> None:  # fmt: skip
            finish(state, parts, images, first, tokens_by_scale, finished)
            for image, count in zip(images, finished, strict=True):
                self.lanes[image].settle(first + count)

        return replace(parts, draw=self.draw, keep_drafted=self.keep, update_state_with_accepted_tokens=update)

    def draw(self, probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
        law_BnV = probs_BnV.double() / probs_BnV.double().sum(-1, keepdim=True)  # a race needs no sum of one
        edges = [[[min(edge, 1.0) for edge in accumulate(law_V[:-1])] for law_V in row] for row in law_BnV.tolist()]
        return torch.tensor([self._decide(*row)[1] for row in zip(E_BnV[..., 0].tolist(), edges, strict=True)])

    def keep(self, u_Bn: Tensor, draft_Bn: Tensor, target_Bn: Tensor) -> Tensor:
        """Keep with probability min(1, target/draft); the draw that follows is moot where the token is kept."""
        edges = (target_Bn / draft_Bn).clamp_max(1.0)[..., None].tolist()
        rows = []
        for name_n, edges_n in zip(u_Bn.tolist(), edges, strict=True):
            lane, choices = self._decide(name_n, edges_n)
            lane.accepted = [choice == 0 for choice in choices]
            rows.append(lane.accepted)
        return torch.tensor(rows)

    def _decide(self, name_n: list[float], edges_n: list[list[float]]) -> tuple[_Lane, list[int]]:
        """Return the lane of one image's numbers, and what it decides. Raises `Broken` for another count of numbers."""
        n, m = len(name_n), len(edges_n)
        require(n == m, f"{count_of(n, 'number')} decide{'s' * (n == 1)} on {count_of(m, 'token')}", "noise")
        B, L = len(self.lanes), len(self.levels)
        lane = self.lanes[int(name_n[0]) % B]
        moot_n, lane.accepted = lane.accepted or [False] * len(name_n), []
        cell_n = [int(name) // B for name in name_n]
        decisions = zip(cell_n, edges_n, moot_n, strict=True)
        return lane, [lane.decide(cell, self.levels[cell % L], edges, moot) for cell, edges, moot in decisions]


def output_law(
    models: ModelPair, request: Request, options: DecoderOptions, parts: Parts = PARTS,
    prepare: Callable[[Parts], Parts] = lambda parts: parts, lanes: int = LANES,
) -> tuple[JointLaw, int]:  # fmt: skip
    """Return the exact law of the decoder's tokens for one image with a label, and the number of branches walked.

    `prepare` changes the parts last of all, around the deciding functions: there a test plants a bug in those. `lanes`
    branches at most are one batch: 1 for networks whose rounding of an image depends on its company.
    """
    law: JointLaw = {}
    waiting: list[_Box] = [{}]
    branches = 0
    options = replace(options, keep_intermediates=False)
    while waiting:
        walk = _Walk(waiting[-lanes:], models)
        del waiting[-lanes:]
        batch = request.only([0] * len(walk.lanes))
        decoder = SpeculativeDecoder(models, options, prepare(walk.parts(parts)))
        trace = decoder.decode(batch, _CellNoise(models, batch))
        for lane, tokens in zip(walk.lanes, trace.tokens_BL.tolist(), strict=True):
            law[tuple(tokens)] = law.get(tuple(tokens), 0.0) + prod(map(_width, lane.box.values()))
            waiting += lane.aside
        branches += len(walk.lanes)
    return law, branches


_LEAST = 5.0  # expected count of a cell, below which cells are pooled: the usual bound for chi-square


def sequences(V: int, L: int) -> Tensor:
    """Return tokens_NL of all N = V^L images, in lexicographic order."""
    return torch.tensor(list(itertools.product(range(V), repeat=L)))


def target_law(case: Case) -> Tensor:
    """Return law_N of `sequences`: the target's exact law of the first image of a case."""
    alone = replace(case, labels=case.labels[:1], order="image", device="cpu")  # few numbers, and float64: on the host
    law = joint_law(alone.models, replace(alone.request, negative_texts=case.request.negative_texts))
    every = sequences(case.V, case.pyramid.draws.L).tolist()
    return torch.tensor([law.get(tuple(tokens), 0.0) for tokens in every], dtype=torch.float64)


def p_value(tokens_BL: Tensor, law_N: Tensor, V: int) -> float:
    """Return the p-value of images under a law of every token, beside the first, and of all; 0 outside its support."""
    tokens_BL, L = tokens_BL.cpu(), tokens_BL.shape[1]
    tokens_NL = sequences(V, L)
    powers_L = V ** torch.arange(L - 1, -1, -1)
    counts_N = torch.bincount((tokens_BL * powers_L).sum(1), minlength=len(law_N)).double()
    if bool((counts_N[law_N == 0] > 0).any()):
        return 0.0
    groups = [[position] for position in range(L)] + [[0, position] for position in range(1, L)] + [list(range(L))]
    smallest = 1.0
    for group in groups:
        cell_N = (tokens_NL[:, group] * V ** torch.arange(len(group))).sum(1)
        counts, law = (
            torch.zeros(V ** len(group), dtype=torch.float64).index_add(0, cell_N, x) for x in (counts_N, law_N)
        )
        smallest = min(smallest, chi_square(counts, law))
    return min(1.0, len(groups) * smallest)


def chi_square(counts_N: Tensor, law_N: Tensor) -> float:
    """Return the p-value of observed counts under a law; cells below an expected count of `_LEAST` are pooled."""
    expected_N, order = (law_N * counts_N.sum()).sort(descending=True)
    observed_N = counts_N[order].double()
    count = int((expected_N >= _LEAST).sum())
    while count and 0 < float(expected_N[count:].sum()) < _LEAST:  # the pool itself is small: one more cell joins it
        count -= 1
    expected = torch.cat((expected_N[:count], expected_N[count:].sum()[None]))
    observed = torch.cat((observed_N[:count], observed_N[count:].sum()[None]))
    expected, observed = expected[expected > 0], observed[expected > 0]
    if len(expected) < 2:
        return 1.0
    statistic = ((observed - expected).square() / expected).sum()
    half = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic / 2))
