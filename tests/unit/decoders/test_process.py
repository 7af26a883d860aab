"""One launcher of processes: what it starts has a log, says how it ended, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from harness.decoders._process import LOG_BYTES, Process, last_lines


@pytest.mark.parametrize(
    ("serve", "words", "death", "lines"),
    [
        ("builtins:exit", ["bye"], "ended with status 1", ["bye"]),
        ("os:abort", [], "was killed by SIGABRT", []),
        ("os:system", ["kill -9 $PPID"], "was killed by SIGKILL (out of memory?)", []),
    ],
)
def test_a_process_says_how_it_ended_and_what_it_said_last(
    serve: str, words: list[str], death: str, lines: list[str], tmp_path: Path
):
    process = Process(serve, words, [], tmp_path / "log")
    assert process.death() == death
    assert not process.is_alive
    assert last_lines(tmp_path / "log", 1) == lines
    process.send(signal.SIGTERM)  # nobody hears it
    process.end()


def test_whatever_it_started_ends_with_it(tmp_path: Path):
    process = Process("os:system", [f"sleep 100 & echo $! > {tmp_path}/pid; sleep 100"], [], tmp_path / "log")
    file, end = tmp_path / "pid", time.monotonic() + 30
    while not (file.exists() and file.read_text().strip()) and time.monotonic() < end:
        time.sleep(0.01)
    child = int(file.read_text())
    process.end()
    assert process.death() == "was killed by SIGKILL"  # nobody wonders about memory
    while Path(f"/proc/{child}/status").exists() and time.monotonic() < end:
        if "zombie" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_of_a_long_log_the_end_is_read(tmp_path: Path):
    (tmp_path / "log").write_text("x" * LOG_BYTES + "\n\n a \n\nb\n")
    assert last_lines(tmp_path / "log", 2) == ["a", "b"]
