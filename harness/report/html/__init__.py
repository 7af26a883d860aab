"""Pages that people look at: one self-contained HTML file each, of one template family."""

from harness.report.html._history import changes_page, history_page
from harness.report.html._hunt import hunt_page
from harness.report.html._laws import laws_page
from harness.report.html._page import check_page
from harness.report.html._recordings import recordings_page, regeneration_page
from harness.report.html._run import run_page, seen_in
from harness.report.html._timings import contest_page, timings_page
