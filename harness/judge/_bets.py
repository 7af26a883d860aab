"""The laws that a wrong decoder could follow, which are bet on against the target's (contract B), and what that proves.

Promise: the list of laws depends on the request's guidance and filter and on the size of the codebook alone, so that it
is known before the first image. α is the chance that a right decoder is ever called lost, all looks together; what was
won once counts, though it be lost again. How a bet is made, and why it is fair: `_likelihood`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from harness.files import finite
from harness.judge._verdict import Verdict
from harness.protocol import Guidance, Request, ScaleGuidance, unguided


class TokenSource(StrEnum):
    """Whose tokens a share of all tokens are; completes "of the tokens were …"."""

    DRAFT = "the draft's law"
    TOP = "the most likely token"
    UNIFORM = "any token alike"
    BEFORE = "the token of the image before"
    # of a rule that keeps tokens of the draft's, or rejects them
    FROM_TARGET = "redrawn from the target's law where rejected"
    SMALL = "redrawn from the target's law where rejected with a chance below 0.05"
    EASILY = "kept with a chance that is higher by 0.005"
    AGAIN = "redrawn with the draft's own numbers where rejected"
    NEIGHBOUR = "redrawn with their neighbour's numbers where rejected"
    COOLED = "judged as if the draft's temperature were 0.98"
    HEATED = "judged as if the draft's temperature were 1.02"


@dataclass(frozen=True)
class Alternative:
    """A law that a wrong decoder could follow: the target's with its rows, its filter or a share of tokens changed."""

    words: str  # completes "as if …"
    guidance: Guidance | None = None  # in place of the request's
    later: int = 0  # the guidance weight is that of a scale so many later
    swapped: bool = False  # unconditional rows in the place of conditional ones
    temperature: float = 1.0
    filters: tuple[tuple[int, float], ...] = ()  # (top_k, top_p) in place of the request's: one of all, or one a scale
    share: float = 0.0  # of the tokens that are drawn from `source`
    source: TokenSource = TokenSource.DRAFT
    required: bool = False  # CONSISTENT needs enough images to find it

    @property
    def between(self) -> bool:
        """Whether its guidance acts between blocks: no weights of the target's rows give its law, but a pass does."""
        return any(place < 0 for place in _places(self.guidance))


def _places(guidance: Guidance | None) -> tuple[int, ...]:
    return guidance.places if isinstance(guidance, ScaleGuidance) else (0,)


def usual_alternatives(request: Request, V: int) -> tuple[Alternative, ...]:
    """Return the alternatives that are bet on, for a request and a codebook of V tokens."""
    made, places = [], _places(request.guidance)
    between, acts = any(place < 0 for place in places), any(place <= 0 for place in places)
    if request.R > request.B and acts:
        made += [
            Alternative(words, guidance=guidance, required=abs(step) == 0.2)
            for step in ((-0.2, 0.2) if between else (-0.5, -0.2, -0.1, 0.1, 0.2, 0.5))  # a pass each
            for words, guidance in (_moved(request.guidance, step),)
        ]
        made.append(Alternative("conditional and unconditional rows were swapped", swapped=True))
    off = unguided(request.guidance)
    if request.guidance != off and acts:
        made.append(Alternative("there were no guidance", guidance=off))
        shifts = () if between else SHIFTS
        made += [Alternative(f"guidance were that of the scale {word}", later=by) for by, word in shifts]
    made += [
        Alternative(f"the temperature were {tau:g}", temperature=tau, required=abs(tau - 1) == abs(0.95 - 1))
        for tau in (0.9, 0.95, 0.98, 1.02, 1.05, 1.1)
    ]
    made += _filtered(request.every_filter, V)
    made += [
        Alternative(f"{of} tokens were {source.value}", share=share, source=source, required=required)
        for share, source, required in SHARES
        for of in ("the" if share == 1 else f"{share:.0%} of the",)
    ]
    return tuple(made)


def _filtered(every: tuple[tuple[int, float], ...], V: int) -> list[Alternative]:
    """Return what the filter could be instead; the stakes on one scale alone are on that scale's filter alone."""
    every = tuple((k if k < V else 0, p if p < 1 else 0.0) for k, p in every)
    changed = {
        "top-k were off": [(0, p) for _, p in every],
        "top-p were off": [(k, 0.0) for k, _ in every],
        "top-k were halved": [(k // 2 or k, p) for k, p in every],
        "top-k were doubled": [(min(2 * k, V), p) for k, p in every],
        "top-p were squared": [(k, p * p) for k, p in every],
        f"top-k were {V // 2}": [(k or V // 2, p) for k, p in every],
        "top-p were 0.98": [(k, p or 0.98) for k, p in every],
        "the filter were that of the scale before": [every[0], *every[:-1]],
        "the filter were that of the scale after": [*every[1:], every[-1]],
    }
    return [
        Alternative(words, filters=tuple(filters), required=words.endswith("off"))
        for words, filters in changed.items()
        if tuple(filters) != every
    ]


def _moved(guidance: Guidance, step: float) -> tuple[str, Guidance]:
    """Return what guidance would be, in words, if it were more by a step."""
    if isinstance(guidance, ScaleGuidance):
        return f"guidance weights were {step:+g}", replace(guidance, weights=tuple(w + step for w in guidance.weights))
    return f"guidance were {guidance + step:g}", guidance + step


SHIFTS = ((-1, "before"), (1, "after"))
SHARES = (
    (0.02, TokenSource.DRAFT, True),
    (0.1, TokenSource.DRAFT, False),
    (0.02, TokenSource.TOP, False),
    (0.02, TokenSource.UNIFORM, False),
    (0.5, TokenSource.BEFORE, True),
    (1.0, TokenSource.FROM_TARGET, False),
    (1.0, TokenSource.SMALL, False),
    (1.0, TokenSource.EASILY, False),
    (1.0, TokenSource.AGAIN, False),
    (0.5, TokenSource.NEIGHBOUR, False),
    (1.0, TokenSource.COOLED, False),
    (1.0, TokenSource.HEATED, False),
)

ALPHA = 1e-5
HELD = 0.1  # share of a careful gambler's stake that is on the target's law
MOSTLY = 0.75  # share of what a law won at all scales that one of them must have for that scale to be named
FOUND = 1.2816  # a normal number lies below this with probability 0.9


@dataclass(frozen=True)
class Bets:
    """What every alternative (A) wins on a batch; float64 on the CPU."""

    won_BAS: Tensor  # log of the factor, image by image, scale by scale
    # what it would be over all scales if the decoder followed the alternative, on the last image, which stands for all
    mean_A: Tensor
    variance_A: Tensor
    forbidden: tuple[tuple[int, int], ...] = ()  # row and draw of tokens that the filter drops for certain


def stakes(A: int, S: int) -> Tensor:
    """Return log of the stakes: half on laws that differ at one scale alone, half, the last column, at all alike."""
    stake_AT = torch.full((A, S + 1), -math.log(2 * A * S), dtype=torch.float64)
    stake_AT[:, -1] = -math.log(2 * A)
    return stake_AT


def gains(won_NAS: Tensor) -> Tensor:
    """Return by how much every image raises the logarithm of a careful gambler's wealth: gains_NT >= log(HELD).

    Column by column the stakes lie where they won before, `HELD` of them on the target's law itself: the factor is that
    of a law known before the image, so that its mean logarithm is at most the relative entropy of the image's law and
    the target's, at one scale, or, in the last column, over all.
    """
    won_NAT = torch.cat((won_NAS, won_NAS.sum(2, keepdim=True)), 2).double()
    after_NAT = won_NAT.cumsum(0) + stakes(won_NAT.shape[1], won_NAS.shape[2])
    before_NAT = after_NAT - won_NAT
    factors = [(each.logsumexp(1), each.flatten(1).logsumexp(1)) for each in (after_NAT, before_NAT)]
    (after_NT, after_N), (before_NT, before_N) = factors
    gain_NT = torch.cat(((after_NT - before_NT)[:, :-1], (after_N - before_N)[:, None]), 1)
    return torch.logaddexp(gain_NT + math.log1p(-HELD), torch.tensor(math.log(HELD), dtype=torch.float64))


class Wealth:
    """What one decoder's bets under one setting came to; all `looks` accuse a right one with chance `alpha`."""

    def __init__(self, alternatives: Sequence[Alternative], S: int, looks: int = 1, alpha: float = ALPHA) -> None:
        self.alternatives, self.S = tuple(alternatives), S
        A = len(self.alternatives)
        self.goal, self.looks = math.log(looks / alpha), looks
        self.stake_AT = stakes(A, S)
        self.won_AT = torch.zeros(A, S + 1, dtype=torch.float64)
        self.under_3A = torch.zeros(3, A, dtype=torch.float64)  # of batches: mean, its square, variance
        self.images, self.batches, self.forbidden, self.highest = 0, 0, 0, 0.0

    def take(self, bets: Bets) -> None:
        for won_AS in bets.won_BAS:
            self.won_AT += torch.cat((won_AS, won_AS.sum(1, keepdim=True)), 1)
            self.images += 1
            self.highest = max(self.highest, self.log_wealth)
        self.under_3A += torch.stack((bets.mean_A, bets.mean_A.square(), bets.variance_A))
        self.batches += 1
        self.forbidden += len(bets.forbidden)

    @property
    def log_wealth(self) -> float:
        """Logarithm of the mixture's wealth now."""
        return float((self.won_AT + self.stake_AT).flatten().logsumexp(0))

    @property
    def is_lost(self) -> bool:
        """True where a right decoder would have been met with probability α at most."""
        return self.forbidden > 0 or self.highest >= self.goal

    @property
    def verdict(self) -> Verdict:
        """DEFECT once proved; CONSISTENT where all that is `required` would have been found; else INCONCLUSIVE."""
        if self.is_lost:
            return Verdict.DEFECT
        needed = [number for a, number in self.images_to_find().items() if a.required]
        return Verdict.CONSISTENT if self.images >= max(needed, default=math.inf) else Verdict.INCONCLUSIVE

    def says(self) -> str:
        """Say in a clause what is proved, or what would have been found."""
        alternative, scale = self.best()
        if self.forbidden:
            return f"{self.forbidden} tokens have probability 0 under the request's filter"
        if self.is_lost:
            where = f" at scale {scale}" if scale >= 0 else ""
            chance = self.looks * math.exp(-min(self.highest, 700.0))
            return f"the tokens are as if {alternative.words}{where} (a right decoder's are with chance {chance:.1g})"
        found = self.images_to_find()
        missed = [(number, a.words) for a, number in found.items() if number > self.images and a.required]
        if not missed:
            count = sum(number <= self.images for number in found.values())
            return f"{self.images} images would have shown {count} of {len(found)} other laws, in 9 of 10 runs"
        number, words = max(missed)
        need = "no number of images shows" if math.isinf(number) else f"{number:.0f} are needed to notice"
        return f"{self.images} images prove little: {need} if {words}"

    def as_dict(self) -> dict[str, object]:
        """Return what is proved as JSON values; images that never suffice are None."""
        best, scale = self.best()
        return {
            "verdict": self.verdict.value,
            "says": self.says(),
            "images": self.images,
            "forbidden": self.forbidden,
            "log_wealth": self.highest,
            "goal": self.goal,
            "best": {"as if": best.words, "scale": scale},
            "images_to_find": finite({a.words: number for a, number in self.images_to_find().items()}),
        }

    def best(self) -> tuple[Alternative, int]:
        """Return the alternative that won most, whatever its stake, and its scale; −1 where it won at several."""
        a, column = divmod(int(self.won_AT.argmax()), self.S + 1)
        alone, scale = self.won_AT[a, :-1].max(0)
        is_one = column < self.S or alone >= MOSTLY * self.won_AT[a, -1]
        return self.alternatives[a], int(scale) if is_one else -1

    def images_to_find(self) -> dict[Alternative, float]:
        """Return how many images find a decoder that follows each alternative, 9 times in 10; may be infinite."""
        if not self.images:
            return dict.fromkeys(self.alternatives, math.inf)
        mean_A, square_A, variance_A = (self.under_3A / self.batches).tolist()
        goal = self.goal - float(self.stake_AT[0, -1])
        return {
            a: _images(mean, max(0.0, variance) + max(0.0, square - mean * mean), goal)
            for a, mean, square, variance in zip(self.alternatives, mean_A, square_A, variance_A, strict=True)
        }


def _images(mean: float, variance: float, goal: float) -> float:
    """Return the least n with n·mean − FOUND·√(n·variance) >= goal."""
    if not mean > 0:
        return math.inf
    root = (FOUND * math.sqrt(variance) + math.sqrt(FOUND**2 * variance + 4 * mean * goal)) / (2 * mean)
    return math.ceil(root * root) if math.isfinite(root * root) else math.inf
