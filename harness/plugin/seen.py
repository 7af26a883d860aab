"""What all items saw, in the process that reports: the summary in the terminal, and the page.

Promise: imported by every run of pytest, and silent in all that checked no law.
"""

from __future__ import annotations

from typing import Any

import pytest

from harness.plugin.options import ASKED

ROW = "sdvar_row"  # attribute of a test report: what `report.laws.Checked` holds, as plain values


class Gathered:
    """Collects the rows of reports, wherever the items ran.

    Args:
        config: of the run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.rows: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a row."""
        row = getattr(report, ROW, None)
        if row is not None:
            self.rows[row["id"]] = row

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line a law or case: how much was tried, and how much of it was not trivial."""
        if self.rows:
            from harness.report.laws import Checked, line  # noqa: PLC0415

            terminalreporter.section("laws")
            rows = [Checked.of(row) for _, row in sorted(self.rows.items())]
            for row in rows:
                terminalreporter.write_line(line(row))
            laws = [row for row in rows if row.kind == "law"]
            examples = sum(row.examples for row in laws)
            terminalreporter.write_line(f"{'all':28s} {examples:5d} examples of {len(laws)} laws")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the page."""
        asked = self.config.stash.get(ASKED, None)
        if asked is None or asked.report is None:
            return
        from harness.files import write_whole  # noqa: PLC0415
        from harness.report.html.laws import laws_page  # noqa: PLC0415
        from harness.report.laws import Checked  # noqa: PLC0415

        rows = [Checked.of(row) for row in self.rows.values()]
        write_whole(asked.report, laws_page(rows, asked.name, asked.scope))
