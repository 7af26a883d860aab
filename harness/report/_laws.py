"""Laws and hunts for planted bugs: records that travel between processes, lines in the terminal, a hunt as JSON."""

from collections import Counter
from dataclasses import dataclass

from rich.console import Console

from harness.files import compact
from harness.judge import Verdict
from harness.mutants import Caught, Hunt
from harness.provenance import versions
from harness.report._tables import Column, name_column, print_table, prose_column
from harness.report._terminal import say
from harness.rounding import precision
from harness.wording import count_of


@dataclass(frozen=True)
class CheckRow:
    id: str  # of the law, name of the case
    kind: str  # law or digits
    statement: str  # what holds, or what was decoded
    watches: tuple[str, ...]  # components that it points to
    verdict: Verdict | None  # None where it does not apply
    examples: int = 0  # cases, or images
    exercised: int = 0  # those that were not trivial
    refused: int = 0  # cases that the decoder refused
    seconds: float = 0.0  # of all its checks
    why: str = ""  # why it does not apply, or proves nothing
    finding: str = ""  # what is broken, one clause
    case: str = ""  # the smallest that breaks it
    replay: str = ""  # the line that shows it again
    known: str = ""  # why it is known to fail; empty where it is not

    @property
    def state(self) -> str:
        """One of held, broken, known, unproven; empty where it does not apply."""
        if self.verdict is None:
            return ""
        if not self.verdict.exit_status:
            return "held"
        if self.known:
            return "known"
        return "broken" if self.verdict is Verdict.DEFECT else "unproven"

    @property
    def fails_no_more(self) -> bool:
        return bool(self.known) and self.state != "known"

    @property
    def family(self) -> str:
        return self.id.partition("." if self.kind == "law" else "[")[0]


def check_line(row: CheckRow) -> str:
    if row.verdict is None:
        return f"{row.id:28s} does not apply: {row.why}"
    counts = f"images, {row.verdict}"
    if row.kind == "law":
        counts = f"examples, {row.exercised / max(1, row.examples):4.0%} not trivial, {row.refused} refused"
    ends = {
        "held": "", "unproven": ": UNPROVEN", "broken": f": BROKEN, watches {', '.join(row.watches)}",
        "known": f": fails, as is known: {row.known}",
    }  # fmt: skip
    end = ends[row.state] + (f": known to fail ({row.known}), and does not" if row.fails_no_more else "")
    return f"{row.id:28s} {row.examples:5d} {counts}{end}"


def show_hunt(hunt: Hunt, console: Console, quiet: bool, verbose: bool = False) -> None:
    """Print a hunt: what survived, and with `verbose` what was caught, too; `quiet` leaves the last line only."""
    total = len(hunt.found)
    if not quiet:
        title = f"planted bugs on {hunt.device}, {hunt.dtype} where a law does not need float64"
        shown = [each for each in hunt.found if verbose or each.survived]
        columns = [name_column("bug"), Column("time (s)")]
        columns += [prose_column("caught by"), prose_column("smallest failing example")]
        print_table(console, title, columns, [_cells(each) for each in shown])
        if any(each.mutant.alone for each in shown):
            say(console, "* no law of another family may catch it (--laws all checks this)")
        if not verbose and len(hunt.survived) < total:
            caught = [each for each in hunt.found if not each.survived]
            slowest = max(caught, key=lambda each: each.seconds)
            families = Counter(each.mutant.family for each in caught)
            counts = ", ".join(f"{word} {count}" for word, count in families.items())
            say(console, f"caught: {counts}; at the latest after {slowest.seconds:.1f} s ({slowest.mutant.id})")
        for each in hunt.survived:
            say(console, f"survived: {each.mutant.id} ({why_survived(each)})")
        for law in hunt.false_alarms:
            say(console, f"false alarm: {law.id} is broken by the correct decoder")
    word, colour = ("SURVIVED", "bold red") if hunt.verdict is Verdict.DEFECT else ("CAUGHT", "green")
    alarms = count_of(len(hunt.false_alarms), "false alarm")
    say(console, f"{total - len(hunt.survived)} of {count_of(total, 'planted bug')} caught, {alarms}", word, colour)


def why_survived(caught: Caught) -> str:
    elsewhere = ", ".join(violation.law.id for violation in caught.elsewhere)
    if caught.own:
        return f"caught outside its family, too, by {elsewhere}"
    return f"{caught.mutant.change}: no law of its family broke{f'; caught by {elsewhere}' if elsewhere else ''}"


def smallest_case(caught: Caught) -> str:
    """Return the smallest failing example of a mutant's own family as words; empty of none."""
    return repr(caught.smallest.case).removeprefix("Case(").removesuffix(")") if caught.smallest else ""


def _cells(caught: Caught) -> list[str]:
    laws = [violation.law.id.partition(".")[2] for violation in caught.own]
    laws += [violation.law.id for violation in caught.elsewhere]
    return [
        f"{caught.mutant.id}{' *' if caught.mutant.alone else ''}",
        f"{caught.seconds:.1f}" if caught.violations else "-",
        ", ".join(laws) or "SURVIVED",
        smallest_case(caught) or "-",
    ]


def hunt_json(hunt: Hunt) -> bytes:
    values = {
        **{name: getattr(hunt, name) for name in ("device", "dtype", "examples", "seed")},
        "laws": hunt.scope,
        "caught": len(hunt.found) - len(hunt.survived),
        "survived": [caught.mutant.id for caught in hunt.survived],
        "false_alarms": [law.id for law in hunt.false_alarms],
        "precision": precision(),
        "versions": versions(),
        "mutants": [_mutant_values(caught) for caught in hunt.found],
    }
    return compact(values)


def _mutant_values(caught: Caught) -> dict[str, object]:
    smallest = caught.smallest
    return {
        **{name: getattr(caught.mutant, name) for name in ("id", "change", "origin", "alone")},
        "survived": caught.survived,
        "laws_tried": caught.tried,
        "caught_by": {violation.law.id: repr(violation.case) for violation in caught.violations},
        "smallest_case": repr(smallest.case) if smallest else None,
        "found": smallest.found if smallest else None,
        "seconds": caught.seconds if caught.violations else None,
        "total_seconds": caught.total_seconds,
    }
