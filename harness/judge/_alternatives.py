"""The laws that a wrong decoder could follow: what is bet on against the target's (`judge.likelihood`).

Promise: the list depends on the request's guidance and filter and on the size of the codebook alone, so that it is
known before the first image.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from harness.protocol import Guidance, Request, ScaleGuidance, unguided


class TokenSource(StrEnum):
    """Whose tokens a share of all tokens are."""

    DRAFT = "the draft's law"
    TOP = "the most likely token"
    UNIFORM = "any token alike"
    BEFORE = "the token of the image before"


@dataclass(frozen=True)
class Alternative:
    """A law that a wrong decoder could follow: the target's with one thing changed."""

    words: str  # completes "as if …"
    guidance: Guidance | None = None  # in place of the request's
    later: int = 0  # the guidance weight is that of a scale so many later
    swapped: bool = False  # unconditional rows in the place of conditional ones
    temperature: float = 1.0
    top_k: int | None = None  # in place of the request's; 0 switches it off
    top_p: float | None = None  # likewise
    share: float = 0.0  # of the tokens that are drawn from `source`
    source: TokenSource = TokenSource.DRAFT
    required: bool = False  # CONSISTENT needs enough images to find it


def usual_alternatives(request: Request, V: int) -> tuple[Alternative, ...]:
    """Return the alternatives that are bet on, for a request and a codebook of V tokens."""
    made = []
    if request.R > request.B:
        made += [
            Alternative(words, guidance=guidance, required=abs(step) == 0.2)
            for step in (-0.5, -0.2, -0.1, 0.1, 0.2, 0.5)
            for words, guidance in (_moved(request.guidance, step),)
        ]
        made.append(Alternative("conditional and unconditional rows were swapped", swapped=True))
    off = unguided(request.guidance)
    if request.guidance != off:
        made.append(Alternative("there were no guidance", guidance=off))
        made += [Alternative(f"guidance were that of the scale {word}", later=by) for by, word in SHIFTS]
    made += [
        Alternative(f"the temperature were {tau:g}", temperature=tau, required=abs(tau - 1) == abs(0.95 - 1))
        for tau in (0.9, 0.95, 0.98, 1.02, 1.05, 1.1)
    ]
    for k in {0, request.top_k // 2, min(2 * request.top_k, V)} - {request.top_k} if request.top_k else {V // 2}:
        made.append(Alternative(f"top-k were {k or 'off'}", top_k=k, required=not k))
    for p in {0.0, request.top_p**2} - {request.top_p} if request.top_p else {0.98}:
        made.append(Alternative(f"top-p were {f'{p:.3g}' if p else 'off'}", top_p=p, required=not p))
    made += [
        Alternative(f"{share:.0%} of the tokens were {source.value}", share=share, source=source, required=required)
        for share, source, required in SHARES
    ]
    return tuple(made)


def _moved(guidance: Guidance, step: float) -> tuple[str, Guidance]:
    """Return what guidance would be, in words, if it were more by a step."""
    if isinstance(guidance, ScaleGuidance):
        return f"guidance weights were {step:+g}", replace(guidance, weights=tuple(w + step for w in guidance.weights))
    return f"guidance were {guidance + step:g}", guidance + step


SHIFTS = ((-1, "before"), (1, "after"))
SHARES = (
    (0.02, TokenSource.DRAFT, True),
    (0.1, TokenSource.DRAFT, False),
    (0.5, TokenSource.DRAFT, False),
    (0.02, TokenSource.TOP, False),
    (0.1, TokenSource.TOP, False),
    (0.02, TokenSource.UNIFORM, False),
    (0.5, TokenSource.BEFORE, True),
)
