"""The laws that a wrong decoder could follow: what is bet on against the target's (`judge.likelihood`).

Promise: the list depends on the request's guidance and filter and on the size of the codebook alone, so that it is
known before the first image.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

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
