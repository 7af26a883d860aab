"""`sdvar-harness mutants`: hunt planted bugs with the laws, and list what caught them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from harness.commands.options import ReportOptions, flat_options
from harness.errors import InputError
from harness.files import compact, write_whole
from harness.judge.verdict import Verdict
from harness.laws.case import DTYPES
from harness.laws.conformance import LAWS, run_law
from harness.laws.law import Law, Subject
from harness.mutants.catalogue import MUTANTS
from harness.mutants.hunt import SCOPES, Caught, hunt, hunting_cases
from harness.mutants.mutant import Mutant, production
from harness.provenance import versions
from harness.report.terminal import plain_console
from harness.rounding.precision import precision, set_precision


@dataclass(frozen=True)
class HuntOptions:
    """What to hunt, where and how hard."""

    only: Annotated[str, typer.Option(help="Mutants whose id begins so: masks or masks.corner; several: a,b.")] = ""
    laws: Annotated[str, typer.Option(help="first: stop at the first violation; family; all laws.")] = "family"
    examples: Annotated[int, typer.Option(help="Cases per law.")] = 16
    seed: Annotated[int, typer.Option(help="Seed of the cases.")] = 0
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu"
    dtype: Annotated[str, typer.Option(help="Of the networks where a law does not need float64.")] = "float32"

    def chosen(self) -> list[Mutant]:
        """Return the mutants. Raises `InputError` for an id that names none, or another bad option."""
        wanted = self.only.split(",") if self.only else [""]
        for name in wanted:
            if (self.only and not name) or not any(mutant.id.startswith(name) for mutant in MUTANTS):
                families = ", ".join(sorted({mutant.family for mutant in MUTANTS}))
                raise InputError("only", name, "names no mutant", f"pass one of {families}, or FAMILY.WORD")
        if self.laws not in SCOPES:
            raise InputError("laws", self.laws, f"must be one of {', '.join(SCOPES)}", "pass --laws family")
        if self.examples < 1:
            raise InputError("examples", self.examples, "must be 1 or more", "pass --examples 16")
        if not 0 <= self.seed < 2**63:
            raise InputError("seed", self.seed, "must lie in 0..2^63-1", "pass --seed 0")
        if self.dtype not in DTYPES:
            raise InputError("dtype", self.dtype, f"must be one of {', '.join(DTYPES)}", "pass --dtype float32")
        if self.device != "cpu" and not (self.device.startswith("cuda") and torch.cuda.is_available()):
            raise InputError("device", self.device, "is not there", "pass --device cpu")
        return [mutant for mutant in MUTANTS if mutant.id.startswith(tuple(wanted))]


@flat_options
def mutants(options: HuntOptions, report: ReportOptions) -> None:
    """Hunt planted bugs with the laws; a bug that its family of laws does not catch is a defect of the laws.

    Exit status: 0 all caught, 1 one survived or a law broke on the correct decoder, 2 bad input.
    """
    report.check()
    chosen = options.chosen()
    set_precision(False)
    tried = hunting_cases(options.examples, options.seed, options.device, options.dtype)
    laws = [law for law in LAWS if options.laws == "all" or law.family in {mutant.family for mutant in chosen}]
    false_alarms: list[Law] = []
    found: list[Caught] = []
    with Progress(console=Console(stderr=True), transient=True, disable=report.quiet) as progress:
        task = progress.add_task("the correct decoder", total=len(laws) + len(chosen))
        for law in laws:
            if run_law(law, Subject(production), tried).violation is not None:
                false_alarms.append(law)
            progress.advance(task)
        for mutant in chosen:
            progress.update(task, description=mutant.id)
            found.append(hunt(mutant, tried, options.laws))
            progress.advance(task)
    survived = [caught for caught in found if caught.survived]
    verdict = Verdict.DEFECT if survived or false_alarms else Verdict.IDENTICAL
    if report.json is not None:
        write_whole(report.json, as_json(options, found, false_alarms))
    console = plain_console()
    if not report.quiet:
        console.print(table(found, options))
        for caught in survived:
            console.print(f"survived: {caught.mutant.id} ({why(caught)})", soft_wrap=True, highlight=False)
        for law in false_alarms:
            console.print(f"false alarm: {law.id} is broken by the correct decoder", soft_wrap=True, highlight=False)
    colour, word = ("bold red", "SURVIVED") if verdict is Verdict.DEFECT else ("green", "CAUGHT")
    count = f"{len(found) - len(survived)} of {len(found)} planted bugs caught, {len(false_alarms)} false alarms"
    console.print(f"[{colour}]{word}[/] {count}", soft_wrap=True, highlight=False)
    raise typer.Exit(verdict.exit_status)


def why(caught: Caught) -> str:
    """Return why a mutant counts as surviving."""
    if caught.own:
        return f"caught outside its family, too, by {', '.join(v.law.id for v in caught.elsewhere)}"
    elsewhere = f"; caught by {', '.join(v.law.id for v in caught.elsewhere)}" if caught.elsewhere else ""
    return f"{caught.mutant.change}: no law of its family broke{elsewhere}"


def table(found: list[Caught], options: HuntOptions) -> Table:
    """Return one row a mutant: the laws that caught it, the smallest failing example, seconds to the first one."""
    title = f"planted bugs on {options.device}, {options.dtype} where a law does not need float64"
    shown = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("bug")
    shown.add_column("caught by")
    shown.add_column("smallest failing example")
    shown.add_column("seconds", justify="right")
    for caught in found:
        laws = [violation.law.id.partition(".")[2] for violation in caught.own]
        laws += [violation.law.id for violation in caught.elsewhere]
        smallest = caught.smallest
        shown.add_row(
            f"{caught.mutant.id}{' *' if caught.mutant.alone else ''}",
            ", ".join(laws) or "SURVIVED",
            repr(smallest.case).removeprefix("Case(").removesuffix(")") if smallest else "-",
            f"{caught.seconds:.1f}" if caught.violations else "-",
        )
    shown.caption = "* no law of another family may catch it (--laws all checks this)"
    return shown


def as_json(options: HuntOptions, found: list[Caught], false_alarms: list[Law]) -> bytes:
    """Return the hunt as JSON."""
    return compact(
        {
            "device": options.device,
            "dtype": options.dtype,
            "examples": options.examples,
            "seed": options.seed,
            "laws": options.laws,
            "caught": sum(not caught.survived for caught in found),
            "survived": [caught.mutant.id for caught in found if caught.survived],
            "false_alarms": [law.id for law in false_alarms],
            "precision": precision(),
            "versions": versions(),
            "mutants": [_row(caught) for caught in found],
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
        "laws_tried": caught.tried,
        "caught_by": {violation.law.id: repr(violation.case) for violation in caught.violations},
        "smallest_case": repr(smallest.case) if smallest else None,
        "found": smallest.found if smallest else None,
        "seconds": caught.seconds if caught.violations else None,
        "total_seconds": caught.total_seconds,
    }
