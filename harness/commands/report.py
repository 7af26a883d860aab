"""`sdvar-harness report`: a page for people from the file of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands import options
from harness.commands.verify import page_of
from harness.files import check_outputs, write_whole
from harness.report.html.page import check_page
from harness.report.terminal import plain_console, say, show_verification
from harness.runs.recorded import recorded


def report(
    run: Annotated[Path, typer.Argument(help="File of verify --run, of a run that goes on, too.")],
    html: options.Html = None,
    quiet: options.Quiet = False,
) -> None:
    """Show a kept run again: what verify printed, and with --html the page for people. Nothing is decoded or judged.

    Exit status: 0 there is a report, whatever it says; 2 bad input.
    """
    outputs = check_outputs({"html": html}, {"run": run})
    check_page(html)
    result, console = recorded(run), plain_console()
    show_verification(result, console, quiet)
    if "html" in outputs:
        write_whole(outputs["html"], page_of(result, run, True))
        say(console, f"wrote {html}")
