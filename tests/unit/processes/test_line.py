"""A line to a process: no word outlives its time, and no answer costs more than its length."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from harness.processes import _process as line
from harness.processes._process import GoneError, Log, ProcessLine, UnreadableError


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.close()


def echoes(descriptor: str) -> None:
    os.write(int(descriptor), b"one\ntwo\n")
    os.write(int(descriptor), os.read(int(descriptor), 100))


def floods(count: str, descriptor: str) -> None:
    for _ in range(int(count)):
        os.write(int(descriptor), b"x" * 2**16)
    time.sleep(60)


def is_deaf(descriptor: str) -> None:
    time.sleep(60)


HERE = "tests.unit.processes.test_line"


def test_lines_come_one_by_one(log: Log):
    to = ProcessLine(f"{HERE}:echoes", [], [], log)
    to.tell(b"three\nfo", 30)
    assert [to.hear(30, "w") for _ in range(3)] == [b"one", b"two", b"three"]
    with pytest.raises(GoneError, match="the decoder's process ended with status 0"):
        to.hear(30, "w")
    to.close(0.0)


def test_an_answer_without_an_end_is_given_up_in_time(log: Log):
    to = ProcessLine(f"{HERE}:floods", [2**10 + 1], [], log)  # a little above 64 MiB
    begin = time.perf_counter()
    with pytest.raises(UnreadableError, match="answers with more than 67108864 bytes"):
        to.hear(60, "w")
    to.close(0.0)
    assert time.perf_counter() - begin < 20  # it took minutes to look through it from the beginning, piece by piece


def test_reading_is_linear(log: Log, monkeypatch: pytest.MonkeyPatch):
    to, looked = ProcessLine(f"{HERE}:floods", [200], [], log), []

    class Buffer(bytearray):
        def find(self, *where: object) -> int:  # type: ignore[override]
            looked.append(len(self) - int(where[1]))  # type: ignore[call-overload]
            return super().find(*where)  # type: ignore[arg-type]

    to._buffer = Buffer()
    monkeypatch.setattr(line, "LONGEST", 200 * 2**16 - 1)
    with pytest.raises(UnreadableError):
        to.hear(60, "w")
    to.close(0.0)
    assert sum(looked) <= 201 * 2**16


def test_who_does_not_listen_is_not_waited_for(log: Log):
    to = ProcessLine(f"{HERE}:is_deaf", [], [], log)
    begin = time.perf_counter()
    with pytest.raises(GoneError, match=r"the question was not taken within 0.5 s \(timeout\)"):
        to.tell(b"x" * 2**24, 0.5)
    with pytest.raises(GoneError, match=r"no answer within 0.5 s \(a word\)"):
        to.hear(0.5, "a word")
    to.close(0.0)
    assert time.perf_counter() - begin < 10
