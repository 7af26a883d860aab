"""One launcher of processes: what it starts has a log, says how it ended, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.processes._process import LOG_BYTES, Log, Place, Process, signal_name

ROOT = str(Path(__file__).parents[3])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "log")
    yield made
    made.close()


def becomes(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def lives(process: int) -> bool:
    """Tell whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def number_in(file: Path) -> int:
    assert becomes(lambda: file.exists() and bool(file.read_text().strip()))
    return int(file.read_text())


@pytest.mark.parametrize(
    ("serve", "words", "death", "lines"),
    [
        ("builtins:exit", ["bye"], "ended with status 1", ["bye"]),
        ("os:abort", [], "was killed by SIGABRT", []),
        ("os:system", ["kill -9 $PPID"], "was killed by SIGKILL (out of memory?)", []),
        ("os:system", ["kill -40 $PPID"], "was killed by signal 40", []),  # a real-time one has no name
    ],
)
def test_a_process_says_how_it_ended_and_what_it_said_last(
    serve: str, words: list[str], death: str, lines: list[str], log: Log
):
    process = Process(serve, words, [], log)
    assert process.death() == death
    assert not process.is_alive
    assert log.last_lines(1) == lines
    process.send(signal.SIGTERM)  # nobody hears it
    process.end()


def test_no_number_of_a_signal_is_too_odd_for_a_name():
    assert [signal_name(number) for number in (9, 40, 64, 10**6)] == [
        "SIGKILL",
        "signal 40",
        "SIGRTMAX",
        "signal 1000000",
    ]


@pytest.mark.parametrize("start", ["sleep 100 &", "setsid sleep 100 &", "(setsid sh -c 'sleep 100 & wait') &"])
def test_whatever_it_started_ends_with_it(start: str, log: Log, tmp_path: Path):
    process = Process("os:system", [f"{start} echo $! > {tmp_path}/pid; sleep 100"], [], log)
    child = number_in(tmp_path / "pid")
    process.end()
    assert process.death() == "was killed by SIGKILL"  # nobody wonders about memory
    assert becomes(lambda: not lives(child))


def test_what_it_left_behind_ends_with_it_too(log: Log, tmp_path: Path):
    process = Process("os:system", [f"setsid sleep 100 & echo $! > {tmp_path}/pid"], [], log)
    assert process.death() == "ended with status 0"
    assert becomes(lambda: not lives(number_in(tmp_path / "pid")))
    process.end()


STARTER = """
import sys, time, os
from pathlib import Path
from harness.processes._process import Log, Place, Process
process = Process("os:system", ["echo $$ > {0}/pid; sleep 100"], [], Log(), Place(folder="{0}/own"))
time.sleep(100)
"""


def test_where_the_starter_is_killed_nothing_stays(tmp_path: Path):
    (tmp_path / "own" / "deep").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": ROOT}
    starter = subprocess.Popen([sys.executable, "-c", STARTER.format(tmp_path)], env=environment)
    child = number_in(tmp_path / "pid")
    assert lives(child)
    starter.kill()
    starter.wait()
    assert becomes(lambda: not lives(child) and not (tmp_path / "own").exists(), 5.0)


def test_where_it_is_ended_its_folder_is_its_starters_own_business(log: Log, tmp_path: Path):
    (tmp_path / "own").mkdir()
    process = Process("time:sleep", ["x"], [], log, Place(folder=str(tmp_path / "own")))
    assert process.death() == "ended with status 1"
    process.end()
    assert (tmp_path / "own").exists()


def test_of_a_long_log_the_end_is_read(log: Log, tmp_path: Path):
    (tmp_path / "log").write_text("x" * LOG_BYTES + "\n\n a \n\nb\n")
    assert log.last_lines(2) == ["a", "b"]


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [Path.unlink, replaced_by_a_pipe, replaced_by_a_folder])
def test_a_log_is_read_whatever_becomes_of_its_name(change: Callable[[Path], None], log: Log, tmp_path: Path):
    (tmp_path / "log").write_text("the end\n")
    assert log.said(1) == f"log {tmp_path}/log ends: the end"
    change(tmp_path / "log")
    assert log.said(1) == "the log is gone; it ended: the end"


def test_a_log_with_a_hole_costs_no_more_than_its_end(log: Log):
    os.truncate(log.descriptor, 2**42)
    begin = time.perf_counter()
    log.last_lines(3)
    assert time.perf_counter() - begin < 1.0


SEEN = "import json, sys; json.dump([sys.path, __import__('harness').__file__], open(sys.argv[1], 'w'))"


def test_it_finds_this_package_and_nothing_of_the_current_folder(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("")
    (tmp_path / "types.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    process = Process("builtins:exec", [f"import sys; sys.argv[1] = '{tmp_path}/seen'; {SEEN}"], [], log)
    assert process.death() == "ended with status 0", log.last_lines(3)
    process.end()
    path, file = json.loads((tmp_path / "seen").read_text())
    assert "" not in path
    assert str(tmp_path) not in path
    assert file == f"{ROOT}/harness/__init__.py"


CLOSED = """
import os, sys
from harness.processes._process import Log, Process
for number in (0, 1, 2): os.close(number)
process = Process("builtins:print", ["heard"], [], Log())
print_to = os.open({0!r}, os.O_WRONLY | os.O_CREAT)
os.write(print_to, (process.death() + " " + str(print_to > 2)).encode())
"""


def test_closed_standard_streams_are_nobodys_file(tmp_path: Path):
    code = CLOSED.format(str(tmp_path / "said"))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert (tmp_path / "said").read_text() == "ended with status 0 True"
