"""`sdvar-harness report`: a page for people from the file of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from harness.commands import _options as options
from harness.commands.records import Group, Option, command
from harness.files import check_outputs, write_whole


@dataclass(frozen=True)
class ReportOptions(Group):
    """What is shown, and what is written."""

    run: Annotated[Path, Option("File of verify --run, of a run that goes on, too.", argument=True)]
    html: options.Html = None
    quiet: options.Quiet = False


@command("report run.db", "report run.db --html run.html", "report run.db --quiet")
def report(shown: ReportOptions) -> None:
    """Show a kept run again: what verify printed, and with --html the page for people. Nothing is decoded or judged.

    Exit status: 0 there is a report, whatever it says; 2 bad input.
    """
    from harness.report import plain_console, say, show_verification
    from harness.report.html import check_page, run_page, seen_in
    from harness.runs import readable, recorded_result

    paths = check_outputs({"html": shown.html}, {"run": shown.run})
    check_page(shown.html)
    result, console = recorded_result(shown.run), plain_console()
    with readable(shown.run):
        show_verification(result, console, shown.quiet)
        page = run_page(result, seen_in(shown.run, result)) if "html" in paths else b""
    if "html" in paths:
        write_whole(paths["html"], page)
        say(console, f"wrote {shown.html}")
