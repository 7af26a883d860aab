"""Pages that people look at: one self-contained HTML file each, of one template family."""

from harness.report.html._commands import (
    changes_page, contest_page, history_page, recordings_page, regeneration_page, timings_page,
)  # fmt: skip
from harness.report.html._laws import hunt_page, laws_page
from harness.report.html._page import check_page
from harness.report.html._run import run_page, seen_in
