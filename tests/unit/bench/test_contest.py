"""Anybody's decoder beside sequential decoding: judged first, timed from outside, answered in one sentence."""

from __future__ import annotations

import json
import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.bench import Contest, Machine, TimedDecoderError, _contest, contest_rows, sequential_sides
from harness.bench._contest import ContestRow
from harness.clock import Times
from harness.decoders import Terms, start_runner
from harness.errors import InputError
from harness.models import ModelPair
from harness.protocol import Request, Settings, Trace
from harness.protocol.noise import SeededNoise
from harness.report import plain_console, show_contest
from harness.report.html import contest_page
from harness.speculative.sampler import build_decoder
from tests.helpers import command
from tests.unit.bench.measured import MODELS
from tests.unit.report.reading import read

MACHINE = Machine("CPU", 1e9, 1e12)
REQUESTS = [Request((0, 1), 0), Request((1, 2), 1)]
SLOW_S = 0.05


class Slow:
    """The harness's own decoder, and a nap; it dies of the seed 13."""

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.inner: Any = build_decoder(models, settings)
        self.contract, self.seeds = self.inner.contract, list[int]()

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        if request.seed == 13:
            raise RuntimeError("unlucky")
        self.seeds.append(request.seed)
        time.sleep(SLOW_S)
        trace: Trace = self.inner.decode(request, noise)
        return trace


def slow(models: ModelPair, settings: Settings) -> Slow:
    return Slow(models, settings)


class Turning(Slow):
    """The same, right until its third decode."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        trace: Trace = super().decode(request, noise)
        if len(self.seeds) < 3:
            return trace
        if request.seed == 7:
            raise InputError("seed", 7, "is not lucky", "pass another")
        return replace(trace, tokens_BL=(trace.tokens_BL + 1) % MODELS.target.config.V)


class Keeping(Slow):
    """It answers every request with its first trace, and takes no time."""

    kept: Trace | None = None

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        self.kept = self.kept or super().decode(request, noise)
        return self.kept


def turning(models: ModelPair, settings: Settings) -> Turning:
    return Turning(models, settings)


def row(side: str, *times: float, passes: float = math.nan) -> ContestRow:
    return ContestRow(1, side, Times.of(times), passes, 1.0, 2.0, 0)


def contest(*rows: ContestRow) -> Contest:
    said = "IDENTICAL", ("it naps",)
    return Contest("pair", "float32", "mine:factory", Settings(2), (0,), *said, MACHINE, 3, list(rows))


def test_a_floor_above_its_time_is_said_to_mean_nothing(capsys: pytest.CaptureFixture[str]):
    for ms, is_said in ((2.0, False), (0.5, True)):
        show_contest(contest(row("decoder", 4.0), row("sequential", ms, passes=1.0)), "cpu", plain_console())
        out = capsys.readouterr().out
        assert ("neither floor nor share can be relied on" in out) == is_said
        assert out.endswith("next: what the columns mean, and what to change: docs/speed.md#your-own-decoder\n")


@pytest.mark.parametrize("in_process", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_decode_is_timed_by_the_difference_and_under_other_seeds(in_process: bool):
    terms = Terms(in_process=in_process)
    factory = slow if in_process else "tests.unit.bench.test_contest:slow"
    with closing(start_runner(MODELS, factory, [Settings(2)], 2, terms)) as runner:
        first, plain = contest_rows(MODELS, runner, REQUESTS, MACHINE, 3, compiled=False)
        if in_process:
            assert {0, 1, 2, 3} <= set(runner._decoders[0].seeds)  # type: ignore[attr-defined]
    assert (first.side, plain.side, first.batch) == ("decoder", "sequential", 2)
    assert SLOW_S * 1e3 < first.times.least <= first.times.median <= first.times.most
    assert plain.times.median < first.times.median
    assert first.target_calls >= 1
    assert first.floor_ms > 0 or math.isnan(first.floor_ms)
    assert (math.isnan(first.passes_ms), plain.passes_ms > 0, plain.target_calls) == (True, True, 3.0)


def test_a_decoder_that_fails_meanwhile_is_no_time():
    runner = start_runner(MODELS, slow, [Settings(2)], 2, Terms(in_process=True))
    with pytest.raises(TimedDecoderError, match=r"the decoder fails while it is timed: .*unlucky"):
        list(contest_rows(MODELS, runner, [Request((0,), 13)], MACHINE, 1, compiled=False))


@pytest.mark.parametrize(
    ("seed", "said"), [(0, r"is wrong after it: .* at seed 2, image 0"), (7, "refuses while it is timed .*seed=7")]
)
def test_a_decoder_that_turns_wrong_is_no_time(seed: int, said: str):
    runner = start_runner(MODELS, turning, [Settings(2)], 2, Terms(in_process=True))
    with pytest.raises(TimedDecoderError, match=said):
        list(contest_rows(MODELS, runner, [Request((0,), seed)], MACHINE, 1, compiled=False))


def test_an_answer_from_memory_is_no_time():
    runner = start_runner(MODELS, Keeping, [Settings(2)], 2, Terms(in_process=True))
    with pytest.raises(TimedDecoderError, match=r"is wrong after it: .* at seed 4, image 0"):
        list(contest_rows(MODELS, runner, [Request((0,), 0)], MACHINE, 3, compiled=False))


def test_a_time_that_cannot_be_seen_is_none(monkeypatch: pytest.MonkeyPatch):
    runner, decoded = start_runner(MODELS, slow, [Settings(2)], 2, Terms(in_process=True)), _contest._decoded
    monkeypatch.setattr(_contest, "_decoded", lambda *asked: (decoded(*asked)[0], 1.0))
    with pytest.raises(InputError, match=r"repeats=2: is too few: .*; pass --repeats 20"):
        list(contest_rows(MODELS, runner, [Request((0,), 0)], MACHINE, 2, compiled=False))


def test_the_answer_knows_the_spread_and_the_best_rival():
    plain, fast = row("sequential", 90.0, 100.0, 110.0, passes=50.0), row("sequential, compiled", 40.0, passes=30.0)
    slower, faster, unclear = row("decoder", 45.0, 50.0, 55.0), row("decoder", 20.0), row("decoder", 39.0, 41.0)
    (said,) = contest(slower, plain, fast).answers
    assert said == "SLOWER: batch of 1: 50.0 ms, sequential, compiled 40.0 ms: 0.80 times as fast (0.73 to 0.89)"
    assert contest(faster, plain, fast).answers[0].startswith("FASTER: batch of 1: 20.0 ms")
    assert contest(unclear, plain, fast).answers[0].startswith("UNDECIDED: batch of 1")
    two = [replace(each, batch=8) for each in (faster, plain, fast)]
    page = read(contest_page(contest(slower, plain, fast, *two), "cpu"))
    assert "? SLOWER SLOWER: batch of 1" in page.words
    assert "; FASTER: batch of 8" in page.words
    assert "it naps" in page.words
    assert "? SLOWER" in read(contest_page(contest(*two, slower, plain, fast), "cpu")).words
    assert "sequential, compiled 1 40.0 40.0-40.0 1.00× 2.00 30.0 1.0 2%" in page.words
    document = json.loads(contest(slower).document())
    assert (document["rows"][0]["passes_ms"], document["rows"][0]["times"]["median"]) == (None, 50.0)
    assert (document["setting"]["draft_len"], document["seeds"], document["remarks"]) == (2, [0], ["it naps"])


def test_a_cpu_records_nothing():
    assert sequential_sides(MODELS, False) == [("sequential", False, False)]
    assert sequential_sides(MODELS, True)[1:] == [("sequential, compiled", False, True)]


def test_the_command_refuses_what_the_decoder_does_not_read(monkeypatch: pytest.MonkeyPatch, capsys):
    theirs = ("bench", "--implementation", "tests.unit.bench.test_contest:slow")
    for words, rule in (
        (("--policies", "coupled"), "policies=coupled: has no effect on tests.unit.bench.test_contest:slow"),
        (("--graphs",), "graphs=True: has no effect on"),
        (("--draft-len", "2,3"), "draft_len=2,3: must be one for a decoder of yours; pass --draft-len 5"),
        (("--draft-len", "11"), "draft_len=11: must lie in 1..10"),
    ):
        assert command(monkeypatch, *theirs, *words) == 2
        assert rule in capsys.readouterr().err
    assert command(monkeypatch, "bench", "--option", "a=b") == 2
    assert "option=a: the harness's own decoder takes" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_times_who_is_right_and_nobody_who_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = tmp_path / "found.json"
    wrong = ("bench", "--implementation", "harness.mutants.positions:OFFSET", "--json", str(found), "--repeats", "1")
    assert command(monkeypatch, *wrong) == 1
    said = capsys.readouterr().out
    assert "first defect: component positions" in said
    assert "draft_len=" in said.splitlines()[4]  # the decoder drafts, though nobody asked whether it does
    assert not any(option in said for option in ("--cover", "--laws", "--seeds"))
    assert not found.exists()
    for name, status in (("turning", 1), ("slow", 0)):
        tested = ("bench", "--implementation", f"tests.unit.bench.test_contest:{name}", "--repeats", "1")
        assert command(monkeypatch, *tested, "--json", str(found)) == status
        said = capsys.readouterr().out
        assert found.exists() is not bool(status)
        if status:
            assert "DEFECT the decoder was right before it was timed, and is wrong after it: " in said
    assert "slow, draft_len=5 (IDENTICAL) beside sequential decoding" in " ".join(said.split()).replace("coupled ", "")
    assert json.loads(found.read_text())["verdict"] == "IDENTICAL"
