"""Progress: a step a decode, the time left of the whole run, refused work taken off, clean logs."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.judge._verdict import Divergence
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.report._progress import Later, LongWork, watch_of
from harness.runs._decodes import Decodes, Step, verify_decodes
from harness.runs._plan import Plan
from harness.speculative.sampler import build_decoder
from harness.verification import LAW_S, Question, answer_question
from tests.helpers import tiny
from tests.unit.report.sample_runs import HERE

SETTINGS = [Settings(1), Settings(2)]
REQUESTS = [Request((0, 1), 0), Request((2,), 1)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("harness.report._progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_at_the_first_step_and_one_a_minute(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with LongWork("images", 400) as work:
        for _ in range(8):
            clock[0] += 20.0
            work.advance(20, defects=1, first=Divergence("mask", "", 0, scale=3))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "20 of 400 images, 1.0 a second, at most 6:20 left, 1 defect, the first mask, scale 3",
        "80 of 400 images, 1.0 a second, 5:20 left, 4 defects, the first mask, scale 3",
        "140 of 400 images, 1.0 a second, 4:20 left, 7 defects, the first mask, scale 3",
    ]
    with LongWork("images", 400, quiet=True) as work:
        clock[0] += 100.0
        work.advance(40)
    assert capsys.readouterr().err == ""


def test_a_step_of_many_minutes_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("harness.report._progress.PLAIN_S", 0.1)
    with LongWork("laws", 3) as work:
        time.sleep(0.35)
        work.advance()
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert "0 of 3 laws, 0 s so far" in lines
    assert sum(line.startswith("1 of 3 laws, ") for line in lines) > 1
    time.sleep(0.2)
    assert capsys.readouterr().err == ""  # the work is over


def test_in_a_script_verify_says_a_line_a_minute_and_a_function_of_ones_own_is_called(clock, capsys):
    called: list[int] = []
    for progress in (None, lambda: called.append(1)):
        with watch_of(progress)("images", 400) as work:
            clock[0] += 100.0
            work.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert called == [1]


def test_the_time_left_is_that_of_the_whole_run(clock: list[float]):
    work = LongWork("images", 10, quiet=True, later=Later(seconds=30.0, steps=10))
    assert work.line() == "0 of 10 images, 0 s so far"
    clock[0] += 8.0
    work.advance(2)  # 4 s each: 8 here and 10 after them
    assert work.line() == "2 of 10 images, 4.0 s each, at most 1:42 left, 0 defects"
    work.advance(0, off=4)
    assert work.line() == "2 of 6 images, 4.0 s each, at most 1:26 left, 0 defects"


def test_what_begins_slowly_is_not_taken_for_the_pace(clock: list[float]):
    work = LongWork("laws", 77, quiet=True)
    clock[0] += 21.0
    work.advance()  # imports, networks and the first law
    assert work.line() == "1 of 77 laws, 21.0 s each, at most 26:36 left, 0 defects"
    clock[0] += 1.0
    work.advance(2)
    assert work.line() == "3 of 77 laws, 2.0 a second, 0:37 left, 0 defects"


def test_a_pace_that_others_had_is_taken_until_two_steps_were_seen(clock: list[float], capsys):
    with LongWork("laws", 77, later=Later(seconds=10.0, pace=2.0)) as work:
        clock[0] += 21.0
        work.advance()
        assert work.line() == "1 of 77 laws, 2.0 s each, 2:42 left, 0 defects"
        clock[0] += 1.0
        work.advance(2)
        assert work.line() == "3 of 77 laws, 2.0 a second, 0:47 left, 0 defects"
    assert capsys.readouterr().err.splitlines() == ["1 of 77 laws, 2.0 s each, 2:42 left, 0 defects"]


def test_what_was_done_before_is_no_speed(clock: list[float]):
    work = LongWork("images", 100, quiet=True)
    work.advance(50)
    clock[0] += 10.0
    work.advance(10)
    assert work.line() == "60 of 100 images, 1.0 a second, 0:40 left, 0 defects"


def test_a_terminal_has_a_bar_and_a_log_that_passes_for_one_has_none(monkeypatch: pytest.MonkeyPatch, clock):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = []
    for stream in (Screen(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        with LongWork("laws", 4) as work:
            clock[0] += 1.0
            work.advance(task="masks.corner")
        shown.append(stream.getvalue())
    assert "\x1b" in shown[0]
    assert "masks.corner" in shown[0]
    assert "1/4 1.0 a second, at most 0:03 left" in re.sub(r"\x1b\[[0-9;]*m", "", shown[0])
    assert shown[0].endswith("\x1b[2K")  # the line of the bar is empty again
    assert shown[1] == ""  # and what is short has no line either


class Picky:
    """A decoder that refuses batches of several images."""

    contract = "token-identical"

    def __init__(self, models, settings) -> None:
        self.inner = build_decoder(models, settings)

    def decode(self, request, noise):
        if request.B > 1:
            raise InputError("labels", request.labels, "must be one", "pass one")
        return self.inner.decode(request, noise)


def test_a_step_is_a_decode_and_refused_work_is_taken_off():
    steps: list[Step] = []
    plan = Plan.of(SETTINGS, REQUESTS)
    verify_decodes(tiny(), Decodes(build_decoder, plan, HERE), progress=steps.append)
    assert steps == [Step(2), Step(2), Step(1), Step(1)]
    lines: list[str] = []

    def watch(unit: str, total: int, *, later: Later = Later()) -> LongWork:  # noqa: B008  # plain values
        work = LongWork(unit, total, quiet=True, later=later)
        work.told = lambda: lines.append(work.line())
        return work

    question = Question(Picky, (Settings(1),), terms=HERE, cover=True)
    result = answer_question(tiny(), question, watch=watch)
    done, total = map(int, re.findall(r"\d+", lines[-1])[:2])
    assert done == total == result.images > 0
    assert sum(setting.refused for setting in result.settings) > 0


def test_laws_have_a_bar_and_the_decodes_count_their_time(tmp_path: Path):
    stages: list[tuple[str, int, float]] = []

    def watch(unit: str, total: int, *, later: Later = Later()) -> LongWork:  # noqa: B008  # plain values
        stages.append((unit, total, later.pace or later.seconds))
        return LongWork(unit, total, quiet=True, told=lambda: stages.append((unit, 0, 0.0)))

    def stopped(*_, **__):
        raise InputError("laws", 1, "are not tried here", "none")

    question = Question("harness:build_decoder", (Settings(2),), (Request((0,), 0),), HERE, laws=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.verification.try_laws_quickly", stopped)
        with pytest.raises(InputError, match="are not tried here"):
            answer_question(tiny(), question, watch=watch)
    (images, one, seconds), _, (laws, count, pace) = stages
    assert (images, one, laws, pace) == ("images", 1, "laws", LAW_S)  # of its own decoder
    assert count > 70
    assert seconds == pytest.approx(LAW_S * count)
