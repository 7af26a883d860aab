"""`sdvar-harness report`: kept runs again, in the terminal and as pages: one, many beside each other, what changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.commands import _options as options
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs, write_asked

if TYPE_CHECKING:
    from rich.console import Console

FILES = "Files of verify --run, of runs that go on, too; or folders of such files."


@dataclass(frozen=True)
class ReportOptions(Group):
    """What is shown, and what is written."""

    runs: Annotated[list[Path], Option(FILES, argument=True)]
    compare: Annotated[bool, Option("Say what changed from the first of two runs to the second.")] = False
    html: options.Html = None
    verbose: options.Verbose = False
    quiet: options.Quiet = False


@command("report run.db", "report run.db --html run.html", "report runs --html runs.html", "report --compare a.db b.db")
def report(shown: ReportOptions) -> None:
    """Show kept runs again: one as verify printed it, several with a row each, or what changed between two.

    With --html the page for people, too. Nothing is decoded or judged.

    Exit status: 0 there is a report, whatever it says; 2 bad input.
    """
    from harness.report import History, plain_console, run_files, say, show_history
    from harness.report.html import check_page, history_page

    console, files = plain_console(), run_files(shown.runs)
    paths = check_outputs({"html": shown.html}, {"run" if file == files[0] else f"run {file}": file for file in files})
    check_page(shown.html)
    if shown.compare and len(files) != 2:
        raise InputError("compare", True, f"takes two runs, and there are {len(files)}", "pass two files")
    if shown.compare:
        page = _of_two(files[0], files[1], "html" in paths, console)
    elif len(files) == 1 and shown.runs == files:
        page = _of_one(files[0], shown, "html" in paths, console)
    else:
        history = History.of(files)
        show_history(history, console, shown.quiet)
        page = history_page(history) if "html" in paths else b""
    write_asked(paths, html=lambda: page)
    if "html" in paths:
        say(console, f"wrote {shown.html}")


def _of_one(file: Path, shown: ReportOptions, wants_page: bool, console: Console) -> bytes:
    """Show one run; return its page, where it is wanted."""
    from harness.report import show_verification
    from harness.report.html import run_page, seen_in
    from harness.runs import RUN_FILE, recorded_result

    result = recorded_result(file)
    with RUN_FILE.readable(file):
        show_verification(result, console, shown.quiet, shown.verbose)
        return run_page(result, seen_in(file, result)) if wants_page else b""


def _of_two(one: Path, other: Path, wants_page: bool, console: Console) -> bytes:
    """Show what changed from one run to another; return its page, where it is wanted."""
    from harness.report import changes_between, show_changes
    from harness.report.html import changes_page
    from harness.runs import recorded_result

    runs, names = (recorded_result(one), recorded_result(other)), (str(one), str(other))
    show_changes(changes_between(*runs), names, console)
    return changes_page(runs, names) if wants_page else b""
