"""`sdvar-harness report`: a page for people from the file of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from harness.commands import _options as options
from harness.commands._options import WRITTEN
from harness.commands.records import Group, Option, command
from harness.files import check_outputs, write_whole


@dataclass(frozen=True)
class ReportSource(Group):
    """What is shown."""

    run: Annotated[Path, Option("File of verify --run, of a run that goes on, too.", argument=True)]


@dataclass(frozen=True)
class ReportOutputs(Group):
    """What is written."""

    panel = WRITTEN
    html: options.Html = None
    quiet: options.Quiet = False


@command("report run.db", "report run.db --html run.html", "report run.db --quiet")
def report(source: ReportSource, outputs: ReportOutputs) -> None:
    """Show a kept run again: what verify printed, and with --html the page for people. Nothing is decoded or judged.

    Exit status: 0 there is a report, whatever it says; 2 bad input.
    """
    from harness.report import plain_console, say, show_verification
    from harness.report.html import check_page
    from harness.runs import recorded_result

    paths = check_outputs({"html": outputs.html}, {"run": source.run})
    check_page(outputs.html)
    result, console = recorded_result(source.run), plain_console()
    show_verification(result, console, outputs.quiet)
    if "html" in paths:
        from harness.report.html import run_page, seen_in  # Jinja2 is asked for where a page is made

        write_whole(paths["html"], run_page(result, seen_in(source.run, result, True)))
        say(console, f"wrote {outputs.html}")
