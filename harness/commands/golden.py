"""`sdvar-harness golden`: judge recorded tensors; write this project's own only when asked, and say why."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from harness.commands import _options as options
from harness.commands._options import GOLDENS, JUDGED, WRITTEN
from harness.commands.records import Group, Option, add, command
from harness.errors import InputError
from harness.files import check_outputs
from harness.wording import count_of

if TYPE_CHECKING:
    import torch

    from harness.golden import FileResult

app = typer.Typer(help="Recorded tensors: check, record, diff.", no_args_is_help=True)


class GoldenCases(Group, panel=JUDGED):
    """Which recorded cases, and where they run."""

    device: options.Device = "cpu"
    folder: Annotated[Path, Option("Where this project's goldens lie.", shown="harness/golden")] = GOLDENS
    only: Annotated[str, Option("Only cases whose id fits, e.g. 'one-phi-*'.")] = "*"


class CheckOptions(GoldenCases):
    """Which files are checked, and what is said of them."""

    files: Annotated[list[Path] | None, Option("Recordings; none = this project's own goldens.", argument=True)] = None
    json: options.Json = None
    html: options.Html = None
    verbose: options.Verbose = False
    quiet: Annotated[bool, Option("Print defects and the last line only.", panel=WRITTEN)] = False


class DiffOptions(GoldenCases):
    """Which cases are made again, and where the page goes."""

    html: options.Html = None


class RecordOptions(GoldenCases):
    """Which cases are written anew, and why."""

    reason: Annotated[str, Option("Why the goldens change; kept in the files.", panel=WRITTEN)] = ""


@command
def check(cases: CheckOptions) -> None:
    """Run every recorded case again, teacher-forced, and compare.

    Exit status: 0 all hold, 1 a defect, 2 bad input, 3 unverified (recorded on another platform).
    """
    from harness.golden import check_recording, golden_inventory, read_recordings, recorded_cases, stale_entries
    from harness.judge import worst_verdict
    from harness.report import LongWork, plain_console, recordings_json, say, say_after, show_recordings, write_asked
    from harness.report.html import check_page, recordings_page

    files = cases.files or []
    if not files:
        _check_folder(cases.folder)
    inputs = {f"file {path}": path for path in files or cases.folder.glob("*")}
    paths = check_outputs({"json": cases.json, "html": cases.html}, inputs)
    check_page(cases.html)
    device, console = _prepare(cases.device), plain_console()
    results: list[FileResult] = []
    if not files:
        files, results = golden_inventory(device.type, cases.folder)
    recorded = read_recordings(files) if files or not results else []
    parsed = [recorded_cases(recording, device) for recording in recorded]  # all bad input is met before any work
    parsed = [[case for case in chosen if fnmatchcase(case.id, cases.only)] for chosen in parsed]
    if recorded and not any(parsed):
        _no_case(cases.only)
    if not cases.quiet:
        whose = "of the files" if cases.files else f"of this project's own goldens on {device.type}"
        fewer = "; --only NAME asks fewer" * (cases.only == "*")
        say(console, f"{count_of(sum(map(len, parsed)), 'case')} {whose}, a second or more each{fewer}")
    with LongWork("cases", sum(map(len, parsed)), cases.quiet) as work:
        for recording, chosen in zip(recorded, parsed, strict=True):
            if not chosen:
                continue
            result = check_recording(recording, chosen, device, work.advance)
            if recording.own:
                result.defects += stale_entries(recording)
            results.append(result)
    show_recordings(results, console, cases.quiet, cases.verbose)
    status = worst_verdict([result.verdict for result in results]).exit_status
    say_after(console, "golden", status, cases.quiet)
    pairs = list(zip(recorded, parsed, strict=True))
    as_json, as_page = partial(recordings_json, results, device), partial(recordings_page, results, pairs, str(device))
    write_asked(paths, cases.quiet, json=as_json, html=as_page)
    raise typer.Exit(status)


@command
def record(cases: RecordOptions) -> None:
    """Write this project's goldens anew, where they changed.

    Refused without a reason, in CI, on a dirty tree, while a recording is contradicted, and while a law fails.
    """
    from harness.golden import broken_laws, changed_goldens, refuse_installed, write_golden
    from harness.report import plain_console, say, show_golden_changes

    device, console = _prepare(cases.device, cases.only), plain_console()
    refuse_installed(cases.folder)
    changes = changed_goldens(cases.reason, device, cases.folder, only=cases.only)
    if changes and (broken := broken_laws()):
        rule = "must hold before a golden is recorded"
        raise InputError("laws", "; ".join(broken), rule, "mend the code first (pytest tests/property)")
    for after in changes:
        show_golden_changes(f"{after.path.name}: before and after", after.changes, console)
    for after in changes:
        write_golden(after, cases.reason, device)
        say(console, f"wrote {after.path}")
    if not changes:
        say(console, "nothing changed; nothing written")


@command
def diff(cases: DiffOptions) -> None:
    """Show what `record` would change, rounding apart; writes no golden. Exit status 1 when something would."""
    from harness.golden import regenerate_all
    from harness.report import plain_console, say, show_golden_changes, write_asked
    from harness.report.html import check_page, regeneration_page

    _check_folder(cases.folder)
    paths = check_outputs({"html": cases.html}, {f"file {path}": path for path in cases.folder.glob("*")})
    check_page(cases.html)
    device, console = _prepare(cases.device, cases.only), plain_console()
    anew = regenerate_all(device, cases.folder, cases.only)
    for after in anew:
        if after.changes:
            show_golden_changes(f"{after.path.name}: before and after", after.changes, console)
    count = sum(len(after.changes) for after in anew)
    say(console, count_of(count, "change") if count else "nothing would change")
    write_asked(paths, html=lambda: regeneration_page(anew, str(device)))
    raise typer.Exit(1 if count else 0)


for each in (check, record, diff):
    add(app, each)


def _check_folder(folder: Path) -> None:
    """Refuse a folder of goldens that is none: a file that is missing in one is a defect. Raises `InputError`."""
    if not folder.is_dir():
        raise InputError("folder", str(folder), "no such folder", "pass --folder DIR, where goldens lie")


def _prepare(device: str, only: str = "*") -> torch.device:
    """Return the device. Effects: float32 means float32 from here on; says whose code and goldens these are."""
    from harness.commands._inputs import find_device
    from harness.golden import planned_ids, whose_code
    from harness.rounding import set_precision

    set_precision(False)
    if note := whose_code(Path.cwd()):
        typer.echo(f"note: {note}", err=True)
    if not any(fnmatchcase(name, only) for name in planned_ids()):
        _no_case(only)
    return find_device(device)


def _no_case(only: str) -> NoReturn:
    raise InputError("only", only, "fits no case", "name a case, or use wildcards as in 'target*'")
