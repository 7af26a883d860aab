"""Anybody's decoder beside sequential decoding: judged first, timed from outside, answered in one sentence."""

from __future__ import annotations

import json
import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness.bench import Contest, Machine, contest_rows, sequential_sides
from harness.bench._contest import ContestRow
from harness.clock import Times
from harness.decoders import Terms, start_runner
from harness.errors import HarnessError
from harness.models import ModelPair
from harness.protocol import Request, Settings, Trace
from harness.protocol.noise import SeededNoise
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


def row(side: str, *times: float, passes: float = math.nan) -> ContestRow:
    return ContestRow(1, side, Times.of(times), passes, 1.0, 2.0, 0)


def contest(*rows: ContestRow) -> Contest:
    return Contest("pair", "float32", "mine:factory", "IDENTICAL", MACHINE, 3, list(rows))


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
    with pytest.raises(HarnessError, match=r"the decoder fails while it is timed: .*unlucky"):
        list(contest_rows(MODELS, runner, [Request((0,), 13)], MACHINE, 1, compiled=False))


def test_the_answer_knows_the_spread_and_the_best_rival():
    plain, fast = row("sequential", 90.0, 100.0, 110.0, passes=50.0), row("sequential, compiled", 40.0, passes=30.0)
    slower, faster, unclear = row("decoder", 45.0, 50.0, 55.0), row("decoder", 20.0), row("decoder", 39.0, 41.0)
    (said,) = contest(slower, plain, fast).answers
    assert said == "SLOWER: batch of 1: 50.0 ms, sequential, compiled 40.0 ms: 0.80 times as fast (0.73 to 0.89)"
    assert contest(faster, plain, fast).answers[0].startswith("FASTER: batch of 1: 20.0 ms")
    assert contest(unclear, plain, fast).answers[0].startswith("NO FASTER: within the spread: batch of 1")
    page = read(contest_page(contest(slower, plain, fast), "cpu"))
    assert "? SLOWER" in page.words
    assert "sequential, compiled 1 40.0 40.0-40.0 1.00× 2.00 30.0 1.0 2%" in page.words
    document = json.loads(contest(slower).document())
    assert (document["rows"][0]["passes_ms"], document["rows"][0]["times"]["median"]) == (None, 50.0)


def test_a_cpu_records_nothing():
    assert sequential_sides(MODELS, False) == [("sequential", False, False)]
    assert sequential_sides(MODELS, True)[1:] == [("sequential, compiled", False, True)]


def test_the_command_refuses_what_the_decoder_does_not_read(monkeypatch: pytest.MonkeyPatch, capsys):
    theirs = ("bench", "--implementation", "tests.unit.bench.test_contest:slow")
    for words, rule in (
        (("--policies", "coupled"), "policies=coupled: has no effect on tests.unit.bench.test_contest:slow"),
        (("--graphs",), "graphs=True: has no effect on"),
        (("--draft-len", "2,3"), "draft_len=2,3: must be one for a decoder of yours; pass --draft-len 5"),
    ):
        assert command(monkeypatch, *theirs, *words) == 2
        assert rule in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_times_who_is_right_and_nobody_who_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = tmp_path / "found.json"
    wrong = ("bench", "--implementation", "harness.mutants.positions:OFFSET", "--json", str(found), "--repeats", "1")
    assert command(monkeypatch, *wrong) == 1
    assert "first defect: component positions" in capsys.readouterr().out
    assert not found.exists()
    right = ("bench", "--implementation", "tests.unit.bench.test_contest:slow", "--json", str(found), "--repeats", "1")
    assert command(monkeypatch, *right) == 0
    assert "(IDENTICAL) beside sequential decoding" in capsys.readouterr().out
    assert json.loads(found.read_text())["verdict"] == "IDENTICAL"
