"""What a process of its own costs: medians in turns, a time that all of it may take, and a status."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from scripts import process_cost
from scripts.process_cost import main, seconds_of


@pytest.mark.parametrize(("apart", "status"), [(1.04, False), (1.06, True)])
def test_medians_are_compared_in_turns(
    apart: float, status: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[bool] = []
    slow = iter([90.0, 0.0, 0.0])  # one turn in which the machine did something else

    def seconds(words: Sequence[str]) -> float:
        asked.append("--in-process" in words)
        assert list(words)[:2] == ["--models", "d16-d30"]
        return 20.0 if asked[-1] else 20.0 * apart + next(slow)

    monkeypatch.setattr(process_cost, "seconds_of", seconds)
    with pytest.raises(SystemExit) as end:
        main(["--models", "d16-d30"])
    assert (end.value.code, asked) == (status, [True, False, False, True, True, False])
    assert f"ratio {apart:.3f}, at most 1.05" in capsys.readouterr().out


def test_it_ends_in_its_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    monkeypatch.setattr(process_cost.time, "perf_counter", lambda: now[0])

    def seconds(words: Sequence[str]) -> float:
        now[0] += 40.0
        return 40.0

    monkeypatch.setattr(process_cost, "seconds_of", seconds)
    with pytest.raises(SystemExit):
        main(["--within", "170"])
    assert (now[0], "2 turns of 3" in capsys.readouterr().out) == (160.0, True)


def test_a_run_that_does_not_end_well_is_no_time():
    with pytest.raises(RuntimeError, match=r"status 2: error: .*no-such"):
        seconds_of(["--device", "no-such"])
