"""A hunt for planted bugs on the terminal and as JSON."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from harness.files import compact
from harness.judge.verdict import Verdict
from harness.mutants.hunt import Caught, Hunt
from harness.provenance import versions
from harness.report.terminal import say
from harness.rounding.precision import precision


def show(hunt: Hunt, console: Console, quiet: bool) -> None:
    """Print a hunt; `quiet` leaves the last line only."""
    if not quiet:
        console.print(table(hunt))
        for caught in hunt.survived:
            say(console, f"survived: {caught.mutant.id} ({why(caught)})")
        for law in hunt.false_alarms:
            say(console, f"false alarm: {law.id} is broken by the correct decoder")
    word, colour = ("SURVIVED", "bold red") if hunt.verdict is Verdict.DEFECT else ("CAUGHT", "green")
    total, alarms = len(hunt.found), len(hunt.false_alarms)
    count = f"{total - len(hunt.survived)} of {total} planted bugs caught, {alarms} false alarms"
    say(console, count, word, colour)


def why(caught: Caught) -> str:
    """Return why a mutant counts as surviving."""
    if caught.own:
        return f"caught outside its family, too, by {', '.join(v.law.id for v in caught.elsewhere)}"
    elsewhere = f"; caught by {', '.join(v.law.id for v in caught.elsewhere)}" if caught.elsewhere else ""
    return f"{caught.mutant.change}: no law of its family broke{elsewhere}"


def table(hunt: Hunt) -> Table:
    """Return one row a mutant: the laws that caught it, the smallest failing example, seconds to the first one."""
    title = f"planted bugs on {hunt.device}, {hunt.dtype} where a law does not need float64"
    shown = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("bug")
    shown.add_column("caught by")
    shown.add_column("smallest failing example")
    shown.add_column("seconds", justify="right")
    stages = any(caught.verified for caught in hunt.found)
    if stages:
        shown.add_column("first caught by")
    for caught in hunt.found:
        laws = [violation.law.id.partition(".")[2] for violation in caught.own]
        laws += [violation.law.id for violation in caught.elsewhere]
        smallest = caught.smallest
        shown.add_row(
            f"{caught.mutant.id}{' *' if caught.mutant.alone else ''}",
            ", ".join(laws) or "SURVIVED",
            repr(smallest.case).removeprefix("Case(").removesuffix(")") if smallest else "-",
            f"{caught.seconds:.1f}" if caught.violations else "-",
            *([stage(caught)] if stages else []),
        )
    shown.caption = "* no law of another family may catch it (--laws all checks this)"
    return shown


def stage(caught: Caught) -> str:
    """Return what catches a mutant first, with the component that `verify` names and its seconds."""
    if caught.stage != "verify" or caught.verified is None:
        return caught.stage or "-"
    right = "" if caught.mutant.component in ("", caught.verified.component) else f", not {caught.mutant.component}"
    return f"verify ({caught.verified.component}{right}, {caught.verified.seconds:.1f} s)"


def page(hunt: Hunt) -> str:
    """Return the table of docs/laws.md: what a bug changes, what catches it first, the first law, seconds."""
    asked = any(caught.verified for caught in hunt.found)
    by_verify = [caught for caught in hunt.found if caught.stage == "verify"]
    lines = []
    if asked:
        named = [caught for caught in by_verify if caught.mutant.component]
        right = sum(c.verified is not None and c.verified.component == c.mutant.component for c in named)
        counts = f"`verify` alone catches {len(by_verify)} of {len(hunt.found)}"
        lines += [f"{counts}; of the {len(named)} with a stated component it names {right} rightly.", ""]
    lines += ["| planted bug | what it changes | first caught by | law | seconds |", "|---|---|---|---|---:|"]
    for caught in hunt.found:
        first = stage(caught) if asked else caught.stage or "SURVIVED"
        law = f"`{caught.violations[0].law.id}`" if caught.violations else "-"
        seconds = f"{caught.seconds:.1f}" if caught.violations else "-"
        change = caught.mutant.change.replace("|", "\\|")
        lines.append(f"| `{caught.mutant.id}` | {change} | {first} | {law} | {seconds} |")
    return "\n".join([*lines, ""])


def as_json(hunt: Hunt) -> bytes:
    """Return the hunt as JSON."""
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
            "mutants": [_row(caught) for caught in hunt.found],
        }
    )


def _row(caught: Caught) -> dict[str, object]:
    smallest = caught.smallest
    return {
        "id": caught.mutant.id,
        "change": caught.mutant.change,
        "origin": caught.mutant.origin,
        "alone": caught.mutant.alone,
        "survived": caught.survived,
        "stage": caught.stage,
        "verify": vars(caught.verified) if caught.verified else None,
        "laws_tried": caught.tried,
        "caught_by": {violation.law.id: repr(violation.case) for violation in caught.violations},
        "smallest_case": repr(smallest.case) if smallest else None,
        "found": smallest.found if smallest else None,
        "seconds": caught.seconds if caught.violations else None,
        "total_seconds": caught.total_seconds,
    }
