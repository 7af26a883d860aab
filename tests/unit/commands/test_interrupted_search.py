"""A signal during the search for a line ends the command; the verdict that is known already is shown all the same."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from harness.judge import Divergence, Verdict
from harness.protocol import Request
from harness.runs._replay import OF_RECORDS, take_line
from tests.helpers import command

WRONG = ("--implementation", "harness.mutants.positions:OFFSET", "--seeds", "0", "--labels", "0", "--draft-len", "5")


def test_what_is_known_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def stopped(*given: Any, **named: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("harness.runs.take_line", stopped)
    assert command(monkeypatch, "verify", *WRONG, "--locate") == 143
    said = capsys.readouterr().out
    assert "first defect: component positions" in said
    assert "line: not found: the search was interrupted" in said
    assert "DEFECT contract token-identical" in said


@pytest.mark.parametrize("component", [*OF_RECORDS, "positions"])
def test_no_line_is_searched_unasked_for_what_no_tensor_shows(component: str, monkeypatch: pytest.MonkeyPatch):
    asked = list[object]()
    monkeypatch.setattr("harness.runs._replay.locate_case", lambda *given: asked.append(given) or "")
    case = SimpleNamespace(request=Request((0,), 0), implementation="mine:factory")
    first = SimpleNamespace(seconds=0.1), Divergence(component, "", 0)
    result: Any = SimpleNamespace(verdict=Verdict.DEFECT, case=case, first_case=first, line="")
    take_line(result, None)  # type: ignore[arg-type]  # no network runs
    assert bool(asked) == (component == "positions")
    take_line(result, None, asked=True)  # type: ignore[arg-type]
    assert asked
