"""The parts of a decoder: a table, a row a part and law, and the verdict last."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from harness.adapters.probe import ABSENT, BROKEN, CRASHED, HELD, PartLaw
from harness.errors import one_line, shortened
from harness.files import compact
from harness.judge.verdict import Verdict
from harness.provenance import versions
from harness.report.tables import name_column, print_table, prose_column
from harness.report.terminal import COLOURS, MOST_SHOWN, say
from harness.wording import count_of

COLUMNS = (
    name_column("part"),
    name_column("law"),
    name_column("verdict"),
    prose_column("what is wrong with the numbers"),
)
WRONG = (BROKEN, CRASHED)


def parts_verdict(rows: Sequence[PartLaw]) -> Verdict:
    """DEFECT where a law is broken or its part crashes, INCONCLUSIVE where a part could not be asked."""
    if any(row.verdict in WRONG for row in rows):
        return Verdict.DEFECT
    asked = any(row.verdict == HELD for row in rows) and not any(row.verdict == ABSENT for row in rows)
    return Verdict.CONSISTENT if asked else Verdict.INCONCLUSIVE


def show_parts(rows: Sequence[PartLaw], verdict: Verdict, console: Console, quiet: bool, verbose: bool = False) -> None:
    """Print the rows, those that held in one line unless `verbose`; `quiet` leaves the verdict line only."""
    if not quiet:
        shown = [row for row in rows if verbose or row.verdict != HELD]
        print_table(console, "", COLUMNS, [_row(row) for row in shown])
        held = list(dict.fromkeys(row.part for row in rows if row.verdict == HELD))
        if held and not verbose:
            count = count_of(sum(row.verdict == HELD for row in rows), "law")
            say(console, f"held: {count} of {count_of(len(held), 'part')}: {', '.join(map(one_line, held))}")
    counts = {word: sum(row.verdict == word for row in rows) for word in (HELD, *WRONG, ABSENT)}
    said = ", ".join(f"{count} {word.lower()}" for word, count in counts.items() if count or word == HELD)
    wrong = list(dict.fromkeys(row.part for row in rows if row.verdict in WRONG))
    laws = f"{count_of(len(rows), 'law')} of parts"
    say(console, f"{laws}: {said}{'; wrong: ' + ', '.join(wrong) if wrong else ''}", verdict.value, COLOURS[verdict])


def _row(row: PartLaw) -> list[str]:
    return [one_line(row.part), row.law, row.verdict, shortened(one_line(row.found), MOST_SHOWN)]


def parts_json(rows: Sequence[PartLaw], verdict: Verdict) -> bytes:
    """Return the rows as JSON."""
    return compact({"verdict": verdict.value, "parts": [row.as_dict() for row in rows], "versions": versions()})
