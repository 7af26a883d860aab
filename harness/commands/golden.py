"""`sdvar-harness golden`: judge recorded tensors; write this project's own only when asked, and say why."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from harness.commands.options import ModelOptions
from harness.files import check_writable, write_whole
from harness.golden import check as judge
from harness.golden import record as recording
from harness.golden.cases import networks
from harness.golden.diff import changes
from harness.golden.plan import FILES
from harness.golden.store import Recording, read
from harness.report.as_json import versions
from harness.verification import worst

app = typer.Typer(help="Recorded tensors: check, record, diff.", no_args_is_help=True)


@app.command()
def check(
    files: Annotated[list[Path] | None, typer.Argument(help="Recordings; none = this project's own goldens.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the last line only.")] = False,
) -> None:
    """Run every recorded case again, teacher-forced, and compare.

    Exit status: 0 all hold, 1 a defect, 2 bad input, 3 unverified (another platform class).
    """
    check_writable(json_file, "json")
    where = ModelOptions(device=device).find_device()
    console = Console(width=None if Console().is_terminal else 132)
    recordings = [read(path) for path in files or recording.paths(where.type)]
    results = []
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("cases", total=sum(len(r.cases) for r in recordings))
        for found in recordings:
            result = judge.check(found, where, lambda: progress.advance(task))
            if found.own:
                result.defects += recording.stale(found)
            results.append(result)
    if json_file is not None:
        write_whole(json_file, _as_json(results, where))
    for result in results:
        _show(result, console, quiet)
    print(judge.totals(results))
    raise typer.Exit(worst([result.verdict for result in results]).exit_status)


def _show(result: judge.FileResult, console: Console, quiet: bool) -> None:
    if not quiet and result.cases:
        table = Table(title=result.path)
        for name in ("case", "draws", "identical", "ties", "defects", "|Δlogits|", "|Δf_hat|", "|Δimage|", "free run"):
            table.add_column(name, justify="left" if name == "case" else "right", no_wrap=True)
        for case in result.cases:
            counts = (case.draws, case.identical, len(case.ties), len(case.defects))
            deltas = (case.delta_logits, case.delta_f_hat, case.delta_image)
            cells = [*map(str, counts), *("-" if math.isnan(d) else f"{d:.2g}" for d in deltas)]
            table.add_row(case.id, *cells, "same" if case.free_run else "differs")
        console.print(table)
    if result.unverified:
        print(f"UNVERIFIED {result.path}: {result.unverified}")
    for line in result.defects:
        print(f"DEFECT {result.path}: {line}")
    for case in result.cases:
        for line in case.ties if not quiet else []:
            print(f"tie in {case.id}: {line}")
        for line in case.defects[:5]:
            print(f"DEFECT {case.id}: {line}")


def _as_json(results: list[judge.FileResult], device: torch.device) -> bytes:
    cases = [case for result in results for case in result.cases]
    document = {
        "verdict": worst([result.verdict for result in results]).value,
        "cases": len(cases),
        "draws": sum(case.draws for case in cases),
        "identical": sum(case.identical for case in cases),
        "ties": sum(len(case.ties) for case in cases),
        "defects": sum(len(case.defects) for case in cases) + sum(len(result.defects) for result in results),
        "device": str(device),
        "versions": versions(),
        "files": [_file(result) for result in results],
    }
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _file(result: judge.FileResult) -> dict[str, object]:
    cases = []
    for case in result.cases:
        values = {key: None if value != value else value for key, value in asdict(case).items()}  # NaN: not recorded
        cases.append({**values, "verdict": case.verdict.value})
    return {
        "path": result.path,
        "verdict": result.verdict.value,
        "unverified": result.unverified or None,
        "defects": result.defects,
        "cases": cases,
    }


@app.command()
def record(
    reason: Annotated[str, typer.Option(help="Why the goldens change; kept in the files.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    folder: Annotated[Path, typer.Option(help="Where the goldens lie.")] = recording.DATA,
) -> None:
    """Write this project's goldens anew, where they changed."""
    written = recording.record(reason, ModelOptions(device=device).find_device(), folder)
    for made, before in written:
        _show_changes(made, before)
        print(f"wrote {made.path}")
    if not written:
        print("nothing changed; nothing written")


@app.command()
def diff(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    folder: Annotated[Path, typer.Option(help="Where the goldens lie.")] = recording.DATA,
) -> None:
    """Show what `record` would change; writes nothing. Exit status 1 when something would."""
    where, count = ModelOptions(device=device).find_device(), 0
    for models in FILES:
        made = recording.fresh(models, where, folder)
        count += _show_changes(made, read(made.path) if made.path.exists() else None)
    print(f"{count} cases differ")
    raise typer.Exit(1 if count else 0)


def _show_changes(made: recording.Fresh, before: Recording | None) -> int:
    pyramids = {case["id"]: networks(case, made.models).pyramid for case in made.cases}
    found = changes(before, made, pyramids)
    if found:
        table = Table(title=f"{made.path.name}: before and after")
        for name in ("case", "change", "first scale", "tokens", "max |Δf_hat|", "max |Δimage|"):
            table.add_column(name, no_wrap=True)
        for change in found:
            scale = "-" if change.first_scale < 0 else str(change.first_scale)
            deltas = ("-" if math.isnan(d) else f"{d:.2g}" for d in (change.f_hat, change.image))
            table.add_row(change.id, change.what, scale, str(change.tokens), *deltas)
        Console(width=None if Console().is_terminal else 132).print(table)
    return len(found)
