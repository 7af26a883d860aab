"""Planted bugs of work: passes over what was computed before, and caches that keep less than they may."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from harness.mutants._mutant import Mutant, parts
from harness.speculative import DecodeState
from harness.speculative.parts import PARTS


def _round_again(
    state: DecodeState, used: Any, images: list[int], first: int, tokens: list[Tensor], finished: list[int]
) -> None:
    """Take a corrected scale for one that the target has not seen: it computes the whole round again."""
    PARTS.update_state_with_accepted_tokens(state, used, images, first, tokens, finished)
    for image, count in zip(images, finished, strict=True):
        if count < len(tokens):
            state.target.cache.rollback(image, state.pyramid.begin(first))


def _short_draft(
    state: DecodeState, used: Any, images: list[int], first: int, tokens: list[Tensor], finished: list[int]
) -> None:
    """Let the draft see its last final scale again, once more than it must."""
    PARTS.update_state_with_accepted_tokens(state, used, images, first, tokens, finished)
    for image, count in zip(images, finished, strict=True):
        state.draft.cache.rollback(image, state.pyramid.begin(first + count - 1))


ROUND_AGAIN = Mutant("work.round-again", "a round that ends in a correction is computed again",
    "a rollback to the round's begin, for what was accepted", parts(update_state_with_accepted_tokens=_round_again),
    alone=True)  # fmt: skip
SHORT_DRAFT = Mutant("work.short-draft", "the draft's cache forgets the last final scale", "a count of whole scales",
    parts(update_state_with_accepted_tokens=_short_draft), alone=True)  # fmt: skip
