"""The page of `bench`: the best setting, every row, a dash where nothing is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from harness.bench._speed import Machine, Sequential, Speed, SpeedRow
from harness.report.html._commands import timings_page
from tests.helpers import command
from tests.unit.report.reading import read

ALONE = Sequential(100.0, 50.0, 40.0, 2**30)
FAST = SpeedRow(1, "imposed:1", 9, 150.0, ALONE, ALONE, 50.0, 20.0, 25.0, 10.0, 1.0, 1.0, 2**30 + 2**29)
SLOW = replace(FAST, policy="imposed:0.5", ms=125.0, draft_passes_ms=math.nan, target_calls=6.0, kept=0.375)


def run(*rows: SpeedRow) -> Speed:
    return Speed("pair <b>", "TF32", "bfloat16", True, True, Machine("CPU", 1e9, 1e12), list(rows))


def test_the_best_setting_stands_above_and_every_row_below():
    page = read(timings_page(run(FAST, SLOW), "cpu"))
    assert "✓ 2.00 TIMES AS FAST" in page.words
    assert "imposed:RATE accepts drafts at that rate, right or wrong" in page.words
    assert "imposed:RATE" not in read(timings_page(run(replace(FAST, policy="coupled")), "cpu")).words
    assert "imposed:1, 9 drafted scales, 1 image a batch" in page.words
    assert "imposed:1 1 9 100% 50.0 20.0 25.0 10.0 1.00 2.00× 1.11× 180% 50.0%" in page.words
    assert "imposed:0.5 1 9 38% 125.0 – 25.0 10.0 6.00 0.80× – – 50.0%" in page.words
    assert "1 150.0 100.0 50.0 40.0 100.0 50.0 1.00 GiB" in page.words
    assert len(page.all("svg")) == 1
    assert "pair <b>" in page.words
    assert not page.all("b")


def test_where_no_draft_is_judged_there_is_no_share_and_no_draft_length():
    code = replace(FAST, policy="code:5", draft_len=1, kept=math.nan)
    for rows in ((code, FAST), (code,)):
        page = read(timings_page(run(*rows), "cpu"))
        assert "code:5, 1 image a batch" in page.words
        assert "code:5 1 – – 50.0 20.0 25.0 10.0" in page.words
        assert len(page.all("svg")) == 1


def test_no_gain_is_said():
    page = read(timings_page(run(SLOW), "cpu"))
    assert "? NOT FASTER" in page.words
    assert "the best is 0.80 times as fast" in page.words


@pytest.mark.slow
def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    html = tmp_path / "page.html"
    asked = ("bench", "--draft-len", "2", "--repeats", "1", "--quiet", "--html")
    assert command(monkeypatch, *asked, str(tmp_path)) == 2
    assert "is a folder" in capsys.readouterr().err
    assert command(monkeypatch, *asked, str(html)) == 0
    assert "digits on cpu" in read(html.read_bytes()).words
