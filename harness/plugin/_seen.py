"""What all items saw, in the process that reports: the summary in the terminal, and the page.

Promise: imported by every run of pytest, and silent in all that checked no law.
"""

from typing import TYPE_CHECKING

import pytest

from harness.plugin._options import OPTIONS

if TYPE_CHECKING:
    from harness.report import CheckRow

ROW = "sdvar_row"  # attribute of a test report: a `CheckRow` as JSON


class Gathered:
    """Collects the rows of reports, wherever the items ran."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.rows: dict[str, CheckRow] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a row."""
        text = getattr(report, ROW, None)
        if text is not None:
            from harness.report import CheckRow

            row = CheckRow.from_json(text)
            self.rows[row.id] = row

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line a law or case: how much was tried, and how much of it was not trivial."""
        if self.rows:
            from harness.report import check_line

            terminalreporter.section("laws")
            for _, row in sorted(self.rows.items()):
                terminalreporter.write_line(check_line(row))
            examples = [row.examples for row in self.rows.values() if row.kind == "law"]
            terminalreporter.write_line(f"{'all':28s} {sum(examples):5d} examples of {len(examples)} laws")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the page."""
        options = self.config.stash.get(OPTIONS, None)
        if options is None or options.report is None:
            return
        from harness.files import write_whole
        from harness.report.html import laws_page

        write_whole(options.report, laws_page(list(self.rows.values()), options.name, options.scope))
