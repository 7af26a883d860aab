"""The parts of a decoder: a table, a row a part and law, and the verdict last."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from harness.adapters.probe import ABSENT, BROKEN, CRASHED, HELD, PartLaw
from harness.errors import one_line, shortened
from harness.files import compact
from harness.judge.verdict import Verdict
from harness.provenance import versions
from harness.report.terminal import COLOURS, MOST_SHOWN, say

WRONG = (BROKEN, CRASHED)


def verdict_of(rows: Sequence[PartLaw]) -> Verdict:
    """DEFECT where a law is broken or its part crashes, INCONCLUSIVE where a part could not be asked."""
    if any(row.verdict in WRONG for row in rows):
        return Verdict.DEFECT
    asked = any(row.verdict == HELD for row in rows) and not any(row.verdict == ABSENT for row in rows)
    return Verdict.CONSISTENT if asked else Verdict.INCONCLUSIVE


def show(rows: Sequence[PartLaw], verdict: Verdict, console: Console, quiet: bool) -> None:
    """Print the rows; `quiet` leaves the verdict line only."""
    if not quiet:
        table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
        for name in ("part", "law", "verdict", "what is wrong with the numbers"):
            table.add_column(name, overflow="fold")
        last = ""
        for row in rows:
            found = shortened(one_line(row.found), MOST_SHOWN)
            table.add_row(one_line(row.part) if row.part != last else "", row.law, row.verdict, found)
            last = row.part
        console.print(table)
    counts = {word: sum(row.verdict == word for row in rows) for word in (HELD, *WRONG, ABSENT)}
    said = ", ".join(f"{count} {word.lower()}" for word, count in counts.items() if count or word == HELD)
    wrong = list(dict.fromkeys(row.part for row in rows if row.verdict in WRONG))
    line = f"{len(rows)} laws of parts: {said}{'; wrong: ' + ', '.join(wrong) if wrong else ''}"
    say(console, line, verdict.value, COLOURS[verdict])


def as_json(rows: Sequence[PartLaw], verdict: Verdict) -> bytes:
    """Return the rows as JSON."""
    return compact({"verdict": verdict.value, "parts": [row.as_dict() for row in rows], "versions": versions()})
