"""Planted bugs of work: passes over what was computed before, and caches that keep less than they may."""

from harness.mutants._mutant import Alone, updating
from harness.speculative import DecodeState


def _round_again(state: DecodeState, image: int, first: int, finished: int, tried: int) -> None:
    if finished < tried:
        state.target.cache.rollback(image, state.pyramid.begin(first))


# fmt: off
ROUND_AGAIN = Alone("work.round-again", "a round that ends in a correction is computed again",
    "a rollback to the round's begin, for what was accepted", updating(_round_again))
SHORT_DRAFT = Alone("work.short-draft", "the draft's cache forgets the last final scale", "a count of whole scales",
    updating(lambda state, image, first, finished, tried: state.draft.cache.rollback(
        image, state.pyramid.begin(first + finished - 1))))
