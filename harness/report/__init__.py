"""How results are shown."""

from harness.report._goldens import recordings_json, show_golden_changes, show_recordings
from harness.report._history import History, RunSummary, changes_between, run_files, show_changes, show_history
from harness.report._laws import CheckRow, check_line, hunt_json, show_hunt, smallest_case, why_survived
from harness.report._measured import (
    contest_cells, sequential_rows, show_contest, show_exactness, show_quality, show_speed, speculative_rows,
)  # fmt: skip
from harness.report._next import next_steps
from harness.report._progress import Later, LongWork, Watch, watch_of
from harness.report._terminal import (
    laws_line, parts_json, parts_verdict, plain_console, rounds_of, say, say_after, say_replayed,
    say_smallest, setting_name, show_parts, show_verification, write_asked,
)  # fmt: skip
