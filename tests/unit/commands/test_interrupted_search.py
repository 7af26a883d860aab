"""A signal during the search for a line ends the command; the verdict that is known already is shown all the same."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.commands.verify import tell_search
from harness.judge import Divergence, Judgement, Verdict
from harness.protocol import Request
from harness.runs._replay import DECODES, OF_RECORDS, take_line
from tests.helpers import command

WRONG = ("--implementation", "harness.mutants.positions:OFFSET", "--seeds", "0", "--labels", "0", "--draft-len", "5")


def test_what_is_known_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def stopped(*given: Any, told: Callable[[float], None], **named: Any) -> None:
        told(71.4)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("harness.runs.take_line", stopped)
    assert command(monkeypatch, "verify", *WRONG, "--locate") == 143
    said, told = capsys.readouterr()
    assert told.endswith("searching the line of code: about 72 s\n")
    assert "first defect: component positions" in said
    assert "line: not found: the search was interrupted; --locate asks again" in said
    assert re.search(r"next: .*name the line of code: .* --locate", said)
    assert "DEFECT contract token-identical" in said


def row(seconds: float, setting: int = 0, images: int = 1, **wrong: int) -> Any:
    return SimpleNamespace(seconds=seconds, setting=setting, judgement=Judgement(images, **({"draws": 1} | wrong)))


@pytest.mark.parametrize("component", [*OF_RECORDS, "positions"])
@pytest.mark.parametrize("wrong", [{}, {"wrong_tokens": 1}, {"wrong_tensors": 1}, {"draws": 0}])
def test_no_line_is_searched_of_what_no_tensor_shows(
    component: str, wrong: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    searched = list[object]()
    monkeypatch.setattr("harness.runs._replay.locate_case", lambda *given: searched.append(given) or "a line")
    case = SimpleNamespace(request=Request((0,), 0), implementation="mine:factory")
    first = row(0.1, **wrong), Divergence(component, "", 0)
    result: Any = SimpleNamespace(verdict=Verdict.DEFECT, case=case, first_case=first, line="", settings=[])
    take_line(result, None)  # type: ignore[arg-type]  # no network runs
    assert bool(searched) == (component == "positions")
    take_line(result, None, asked=True)  # type: ignore[arg-type]
    is_shown = component == "positions" or bool(wrong)
    assert bool(searched) == is_shown
    assert result.line == ("a line" if is_shown else "not searched: no token and no tensor of the decode is wrong")


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([row(1.4), row(0.0)], ""),  # the first one waited for other programs; one was refused
        ([row(2.0)], "not searched (about 2 min); --locate does it"),
        ([row(0.1, setting=1), row(0.1, images=2)], "not searched (about 6 min); --locate does it"),
    ],
)
def test_a_search_is_thought_to_take_as_long_as_the_quickest_decode_lets_expect(
    others: list[Any], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.runs._replay.locate_case", lambda *given: "")
    case, slow = SimpleNamespace(request=Request((0,), 0), implementation="mine:factory", against=None), row(9.0)
    of_run = {"case": case, "first_case": (slow, Divergence("positions", "", 0)), "line": ""}
    settings = [SimpleNamespace(rows=[slow, *others])]
    result: Any = SimpleNamespace(verdict=Verdict.DEFECT, settings=settings, **of_run)
    told = list[float]()
    take_line(result, None, told=told.append)  # type: ignore[arg-type]  # no network runs
    assert result.line == said
    assert told == ([] if said else [DECODES * 1.4])  # where it is searched


def test_a_closed_stream_keeps_no_verdict_back(monkeypatch: pytest.MonkeyPatch):
    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    tell_search(3.0)


@pytest.mark.parametrize("searched", [False, True])
def test_a_search_that_is_not_made_is_not_announced(searched: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.runs._replay.locate_case", lambda *given: "")
    code = ("a:f", "new"), ("a:f" if searched else "b:g", "old")
    case = SimpleNamespace(request=Request((0,), 0), implementation="a:f", against="other", code=code)
    first = row(0.1), Divergence("positions", "", 0)
    result: Any = SimpleNamespace(verdict=Verdict.DEFECT, case=case, first_case=first, line="", settings=[])
    told = list[float]()
    take_line(result, None, asked=True, told=told.append)  # type: ignore[arg-type]
    assert bool(told) == searched
