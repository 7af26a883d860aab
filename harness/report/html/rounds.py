"""The rounds of one image on a time line: what was drafted, kept, corrected, finished as a bonus, and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.protocol.trace import Round


@dataclass(frozen=True)
class State:
    """What a round did with one scale: class, letter, word."""

    name: str
    letter: str
    word: str


FINAL = State("final", "", "final before")
LATER = State("later", "", "not reached")
KEPT = State("kept", "K", "drafted and kept")
CORRECTED = State("corrected", "C", "drafted and corrected: wrong tokens replaced")
DROPPED = State("dropped", "d", "drafted and dropped")
BONUS = State("bonus", "B", "bonus: finished by the target in the same pass, never drafted")
LEGEND = "; ".join(f"{state.letter} = {state.word}" for state in (KEPT, CORRECTED, DROPPED, BONUS))


@dataclass(frozen=True)
class Lane:
    """One round: a state a scale, and its counts."""

    states: Sequence[State]
    counts: Sequence[str]


@dataclass(frozen=True)
class Turns:
    """All rounds of one image."""

    caption: str
    scales: int
    rows: Sequence[Lane]
    kind: ClassVar[str] = "turns"


def turns(rounds: Sequence[Round], scales: int, caption: str) -> Turns:
    """Return the time line of one image."""
    return Turns(caption, scales, [_turn(turn, scales) for turn in rounds])


def _turn(turn: Round, scales: int) -> Lane:
    fell, behind = turn.first + turn.accepted, turn.first + turn.drafted
    states = []
    for si in range(scales):
        if si < turn.first:
            states.append(FINAL)
        elif si < fell:
            states.append(KEPT)
        elif si == fell and turn.corrected:
            states.append(CORRECTED)
        elif si == behind and turn.bonus:
            states.append(BONUS)
        else:
            states.append(DROPPED if si < behind else LATER)
    counts = (turn.accepted_tokens, turn.corrected_tokens, turn.target_rows)
    return Lane(states, [f"{count:,}" for count in counts])
