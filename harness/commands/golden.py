"""`sdvar-harness golden`: judge recorded tensors; write this project's own only when asked, and say why."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer

from harness.commands.options import Device, Html, Json, Verbose, find_device
from harness.errors import InputError
from harness.files import check_outputs, write_whole
from harness.golden import guard, plan
from harness.golden.check import check as judge
from harness.golden.check import parse_all, read_all
from harness.golden.judgements import FileResult
from harness.golden.record import changed, fresh, write
from harness.judge.verdict import worst
from harness.report.goldens import recordings_json, show_golden_changes, show_recordings
from harness.report.html.page import check_page
from harness.report.progress import LongWork
from harness.report.terminal import plain_console, say
from harness.rounding.precision import set_precision
from harness.wording import count_of

app = typer.Typer(help="Recorded tensors: check, record, diff.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Where this project's goldens lie.")]
Only = Annotated[str, typer.Option(metavar="PATTERN", help="Only cases whose id fits, e.g. 'one-phi-*'.")]


@app.command()
def check(
    files: Annotated[list[Path] | None, typer.Argument(help="Recordings; none = this project's own goldens.")] = None,
    json: Json = None,
    device: Device = "cpu",
    folder: Folder = plan.DATA,
    only: Only = "*",
    verbose: Verbose = False,
    html: Html = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print defects and the last line only.")] = False,
) -> None:
    """Run every recorded case again, teacher-forced, and compare.

    Exit status: 0 all hold, 1 a defect, 2 bad input, 3 unverified (recorded on another platform).
    """
    inputs = {f"file {path}": path for path in files or folder.glob("*")}
    outputs = check_outputs({"json": json, "html": html}, inputs)
    check_page(html)
    where, console = _prepare(device), plain_console()
    results: list[FileResult] = []
    if not files:
        files, results = plan.inventory(where.type, folder)
        if not quiet:
            say(console, f"no FILES given: this project's own goldens on {where.type}")
    recordings = read_all(files) if files or not results else []
    parsed = [parse_all(recording, where) for recording in recordings]  # all bad input is met before any work
    parsed = [[case for case in cases if fnmatchcase(case.id, only)] for cases in parsed]
    if recordings and not any(parsed):
        _no_case(only)
    with LongWork("cases", sum(map(len, parsed)), quiet) as work:
        for recording, cases in zip(recordings, parsed, strict=True):
            if not cases:
                continue
            result = judge(recording, cases, where, work.advance)
            if recording.own:
                result.defects += plan.stale(recording)
            results.append(result)
    show_recordings(results, console, quiet, verbose)
    if "json" in outputs:
        write_whole(outputs["json"], recordings_json(results, where))
    if "html" in outputs:
        from harness.report.html.recordings import recordings_page  # noqa: PLC0415  # Jinja2 only for a page

        checked = list(zip(recordings, parsed, strict=True))
        write_whole(outputs["html"], recordings_page(results, checked, str(where)))
    raise typer.Exit(worst([result.verdict for result in results]).exit_status)


@app.command()
def record(
    reason: Annotated[str, typer.Option(help="Why the goldens change; kept in the files.")] = "",
    device: Device = "cpu",
    folder: Folder = plan.DATA,
    only: Only = "*",
) -> None:
    """Write this project's goldens anew, where they changed.

    Refused without a reason, in CI, on a dirty tree, while a recording is contradicted, and while a law fails.
    """
    where, console = _prepare(device, only), plain_console()
    guard.refuse_installed(folder)
    made = changed(reason, where, folder, only=only)
    if made and (broken := guard.broken_laws()):
        rule = "must hold before a golden is recorded"
        raise InputError("laws", "; ".join(broken), rule, "mend the code first (pytest tests/property)")
    for after in made:
        show_golden_changes(f"{after.path.name}: before and after", after.changes, console)
    for after in made:
        write(after, reason, where)
        say(console, f"wrote {after.path}")
    if not made:
        say(console, "nothing changed; nothing written")


@app.command()
def diff(device: Device = "cpu", folder: Folder = plan.DATA, only: Only = "*", html: Html = None) -> None:
    """Show what `record` would change, rounding apart; writes no golden. Exit status 1 when something would."""
    outputs = check_outputs({"html": html}, {f"file {path}": path for path in folder.glob("*")})
    check_page(html)
    where, console = _prepare(device, only), plain_console()
    made = [fresh(models, where, folder, only) for models in plan.FILES]
    for after in made:
        if after.changes:
            show_golden_changes(f"{after.path.name}: before and after", after.changes, console)
    count = sum(len(after.changes) for after in made)
    say(console, count_of(count, "change") if count else "nothing would change")
    if "html" in outputs:
        from harness.report.html.recordings import regeneration_page  # noqa: PLC0415  # Jinja2 only for a page

        write_whole(outputs["html"], regeneration_page(made, str(where)))
    raise typer.Exit(1 if count else 0)


def _prepare(device: str, only: str = "*") -> torch.device:
    """Return the device. Effects: float32 means float32 from here on; says whose code and goldens these are."""
    set_precision(False)
    if note := guard.whose_code(Path.cwd()):
        typer.echo(f"note: {note}", err=True)
    if not any(fnmatchcase(case["id"], only) for models in plan.FILES for case in plan.cases(models)):
        _no_case(only)
    return find_device(device)


def _no_case(only: str) -> NoReturn:
    raise InputError("only", only, "fits no case", "name a case, or use wildcards as in 'target*'")
