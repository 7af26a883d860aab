"""`sdvar-harness report`: kept runs again, in the terminal and as pages: one, many beside each other, what changed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from harness.commands import _options as options
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs

FILES = "Files of verify --run, of runs that go on, too, or --certificate; or folders of such files."


class ReportOptions(Group):
    """What is shown, and what is written."""

    runs: Annotated[list[Path], Option(FILES, argument=True)]
    compare: Annotated[bool, Option("Say what changed from the first of two runs to the second.")] = False
    html: options.Html = None
    verbose: options.Verbose = False
    quiet: options.Quiet = False


@command
def report(shown: ReportOptions) -> None:
    """Show kept runs again: one as verify printed it, several with a row each, or what changed between two.

    With --html as a page, too. Nothing is decoded or judged.

    Exit status: 0 there is a report, whatever it says; 2 bad input.
    """
    from harness import report
    from harness.certificate import is_certificate
    from harness.report import html
    from harness.runs import RUN_FILE, recorded_result

    page: Callable[[], bytes]
    console, files = report.plain_console(), report.run_files(shown.runs)
    paths = check_outputs({"html": shown.html}, {"run" if file == files[0] else f"run {file}": file for file in files})
    html.check_page(shown.html)
    if shown.compare and len(files) != 2:
        raise InputError("compare", True, f"takes two runs, and there are {len(files)}", "pass two files")
    if shown.compare:
        runs, names = (recorded_result(files[0]), recorded_result(files[1])), (str(files[0]), str(files[1]))
        report.show_changes(report.changes_between(*runs), names, console)
        page = partial(html.changes_page, runs, names)
    elif len(files) == 1 and shown.runs == files and not is_certificate(files[0]):
        result = recorded_result(files[0])
        with RUN_FILE.readable(files[0]):
            report.show_verification(result, console, shown.quiet, shown.verbose)
            page = partial(html.run_page, result, html.seen_in(files[0], result))
    else:
        history = report.History.of(files)
        report.show_history(history, console, shown.quiet)
        page = partial(html.history_page, history)
    report.write_asked(paths, shown.quiet, html=page)
