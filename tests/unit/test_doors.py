"""One decoder has one verdict, whatever door it comes through: API, command, plugin, parts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from harness import Request, Settings, Terms, Verdict, verify
from harness.commands.parts import of_decode
from harness.laws._engine import Scope
from harness.plugin import _checking as checking
from harness.plugin._digits import DigitsCase
from harness.plugin._options import PluginOptions
from harness.verification import Question
from tests import doors
from tests.helpers import Layout, command, tiny

MODELS = tiny(Layout((1, 2, 3, 4, 5)))
SETTINGS, REQUEST = Settings(3), Request((0, 1), 0)
COUNTS = ("images", "draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects")
FEW = ("harness:build_decoder", "tests.doors:wrong_token", "tests.doors:crash")  # where every test is run


@pytest.fixture(autouse=True)
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.commands._inputs.load_digits", lambda: MODELS)


def said(result: dict[str, Any]) -> tuple[object, ...]:
    """Return what a verdict says: all but times and what repeats the run."""
    return (result["verdict"], result["first_divergence"], result["inconclusive"], *(result[name] for name in COUNTS))


def by_command(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    status = command(monkeypatch, "verify", "--quiet", "--json", str(path), *words)
    return status, json.loads(path.read_text())


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in doors.EVERY])
def test_four_doors_give_one_verdict(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    result = verify(MODELS, name, SETTINGS, REQUEST)
    expected = said(json.loads(result.to_json()))
    words = "--seeds", "0", "--labels", "0,1", "--batch", "2", "--draft-len", "3", "--implementation", name
    status, document = by_command(monkeypatch, tmp_path / "result.json", *words)
    assert (status, said(document)) == (result.verdict.exit_status, expected)
    monkeypatch.setattr(checking, "pair", lambda device: MODELS)
    monkeypatch.setattr(checking, "requests_for", lambda models: (REQUEST,))
    monkeypatch.setattr(checking, "FEW", slice(0, 1))
    item = checking.verified(DigitsCase("digits", SETTINGS), PluginOptions(name, (), Scope(), {}))
    assert said(json.loads(item.to_json())) == expected
    row = of_decode(MODELS, Question(name, (SETTINGS,), (REQUEST,)), locate=False)
    words_of = {Verdict.DEFECT: "BROKEN", Verdict.INCONCLUSIVE: "INCONCLUSIVE"}
    assert row.verdict == words_of.get(result.verdict, "held")
    assert row.found == (str(result.first_divergence) if result.verdict is Verdict.DEFECT else row.found)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (doors.RIGHT, Verdict.IDENTICAL),
        (doors.WITHOUT_TOKENS, Verdict.CONSISTENT),
        (doors.UNPROVEN, Verdict.INCONCLUSIVE),
        (doors.WRONG, Verdict.DEFECT),
    ],
)
def test_the_decoders_are_what_they_should_be(names: Iterable[str], wanted: Verdict):
    for name in names:
        # what writes into shared networks does so in a process of its own
        result = verify(MODELS, name, SETTINGS, REQUEST, terms=Terms(in_process="zeroes" not in name))
        assert result.verdict is wanted, name
        if wanted is Verdict.DEFECT:
            assert result.first_divergence is not None
            assert result.first_divergence.component == doors.WRONG[name]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("harness:build_decoder", marks=pytest.mark.slow),  # every law twice
        "tests.doors:lock_step",
        "harness.mutants.state:TWICE",
    ],
)
def test_without_settings_and_requests_the_api_asks_what_the_command_asks(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    result = verify(MODELS, name, terms=Terms(in_process=True))
    words = "--in-process", "--implementation", name
    status, document = by_command(monkeypatch, tmp_path / "result.json", *words)
    expected = json.loads(result.to_json())
    assert (status, said(document)) == (result.verdict.exit_status, said(expected))
    assert document["covers"] is expected["covers"] is True
    assert document["run"].get("laws") == expected["run"].get("laws")
    assert ("laws" in document["run"]) == (result.verdict is not Verdict.DEFECT)
    assert document["exercised"] == expected["exercised"]


def test_one_of_settings_and_requests_alone_leaves_the_other_at_the_commands_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    result = verify(MODELS, settings=Settings(2))
    _, document = by_command(monkeypatch, tmp_path / "result.json", "--draft-len", "2")
    assert said(document) == said(json.loads(result.to_json()))
    result = verify(MODELS, requests=Request((0,), seed=3))
    _, document = by_command(monkeypatch, tmp_path / "again.json", "--seeds", "3", "--labels", "0")
    assert said(document) == said(json.loads(result.to_json()))
    assert [row["setting"]["draft_len"] for row in document["settings"]] == [1, 2, 5]  # of five scales
