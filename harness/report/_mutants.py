"""A hunt for planted bugs on the terminal and as JSON."""

from collections import Counter

from rich.console import Console

from harness.files import compact
from harness.judge import Verdict
from harness.mutants import Caught, Hunt
from harness.provenance import versions
from harness.report._tables import Column, name_column, print_table, prose_column
from harness.report._terminal import say
from harness.rounding import precision
from harness.wording import count_of


def show_hunt(hunt: Hunt, console: Console, quiet: bool, verbose: bool = False) -> None:
    """Print a hunt: what survived, and with `verbose` what was caught, too; `quiet` leaves the last line only."""
    total = len(hunt.found)
    if not quiet:
        title = f"planted bugs on {hunt.device}, {hunt.dtype} where a law does not need float64"
        shown = [caught for caught in hunt.found if verbose or caught.survived]
        columns = [name_column("bug"), Column("time (s)")]
        columns += [prose_column("caught by"), prose_column("smallest failing example")]
        print_table(console, title, columns, [_cells(caught) for caught in shown])
        if any(caught.mutant.alone for caught in shown):
            say(console, "* no law of another family may catch it (--laws all checks this)")
        if not verbose and len(hunt.survived) < total:
            say(console, _caught_line(hunt))
        for caught in hunt.survived:
            say(console, f"survived: {caught.mutant.id} ({why_survived(caught)})")
        for law in hunt.false_alarms:
            say(console, f"false alarm: {law.id} is broken by the correct decoder")
    word, colour = ("SURVIVED", "bold red") if hunt.verdict is Verdict.DEFECT else ("CAUGHT", "green")
    alarms = count_of(len(hunt.false_alarms), "false alarm")
    say(console, f"{total - len(hunt.survived)} of {count_of(total, 'planted bug')} caught, {alarms}", word, colour)


def _caught_line(hunt: Hunt) -> str:
    """Return one line on what was caught: how many of each family, and the longest hunt."""
    caught = [each for each in hunt.found if not each.survived]
    slowest = max(caught, key=lambda each: each.seconds)
    latest = f"at the latest after {slowest.seconds:.1f} s ({slowest.mutant.id})"
    families = Counter(each.mutant.family for each in caught)
    return f"caught: {', '.join(f'{word} {count}' for word, count in families.items())}; {latest}"


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
        _seconds(caught),
        ", ".join(laws) or "SURVIVED",
        smallest_case(caught) or "-",
    ]


def _seconds(caught: Caught) -> str:
    return f"{caught.seconds:.1f}" if caught.violations else "-"


def hunt_json(hunt: Hunt) -> bytes:
    return compact(
        {
            "device": hunt.device,
            "dtype": hunt.dtype,
            "examples": hunt.examples,
            "seed": hunt.seed,
            "laws": hunt.scope,
            "caught": len(hunt.found) - len(hunt.survived),
            "survived": [caught.mutant.id for caught in hunt.survived],
            "false_alarms": [law.id for law in hunt.false_alarms],
            "precision": precision(),
            "versions": versions(),
            "mutants": [_mutant_values(caught) for caught in hunt.found],
        }
    )


def _mutant_values(caught: Caught) -> dict[str, object]:
    smallest = caught.smallest
    return {
        "id": caught.mutant.id,
        "change": caught.mutant.change,
        "origin": caught.mutant.origin,
        "alone": caught.mutant.alone,
        "survived": caught.survived,
        "laws_tried": caught.tried,
        "caught_by": {violation.law.id: repr(violation.case) for violation in caught.violations},
        "smallest_case": repr(smallest.case) if smallest else None,
        "found": smallest.found if smallest else None,
        "seconds": caught.seconds if caught.violations else None,
        "total_seconds": caught.total_seconds,
    }
