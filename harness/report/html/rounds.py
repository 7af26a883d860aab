"""The rounds of one image on a time line: what was drafted, kept, corrected, finished as a bonus, and dropped."""

from __future__ import annotations

from collections.abc import Sequence

from harness.protocol.trace import Round
from harness.report.html.page import Grid, Lane, State

FINAL = State("final", "", "final before")
LATER = State("later", "", "not reached")
KEPT = State("kept", "K", "drafted and kept")
CORRECTED = State("corrected", "C", "drafted and corrected: wrong tokens replaced")
DROPPED = State("dropped", "d", "drafted and dropped")
BONUS = State("bonus", "B", "bonus: finished by the target, never drafted")
LEGEND = "; ".join(f"{state.letter} = {state.word}" for state in (KEPT, CORRECTED, DROPPED, BONUS))
TAILS = "kept tokens", "replaced", "target rows"


def time_line(rounds: Sequence[Round], scales: int, caption: str) -> Grid:
    """Return the time line of one image: a row a round, a column a scale."""
    rows = [_lane(f"{number}", turn, scales) for number, turn in enumerate(rounds, 1)]
    return Grid(caption, "round", [f"{si}" for si in range(scales)], rows, TAILS)


def _lane(name: str, turn: Round, scales: int) -> Lane:
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
    return Lane(name, states, [f"{count:,}" for count in counts])
