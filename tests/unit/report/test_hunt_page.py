"""The page of a hunt: every bug and law, what caught what, what was left, and nothing but text from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.laws import Case
from harness.laws._conformance import LAWS
from harness.laws._law import Violation
from harness.mutants._hunt import MUTANTS, Caught, Hunt, laws_for
from harness.report.html._laws import hunt_page
from tests.helpers import command
from tests.unit.report.reading import read

CASE = Case((1, 2), V=3)


def some(scope: str = "all") -> Hunt:
    """Return a hunt with a caught bug, one that another family caught alone, one that nothing caught, and an alarm."""
    found = []
    for number, mutant in enumerate([m for m in MUTANTS if m.family == "masks"][:3]):
        laws = laws_for(mutant, scope)
        broken = ([laws[0], laws[-1]], [laws[-1]], [])[number]
        violations = [Violation(law, CASE, "a < b & <script>c</script>") for law in broken]
        found.append(Caught(mutant, violations, len(laws), 1.25 if broken else float("nan"), 2.0))
    return Hunt(scope, 4, 0, "cpu", "float32", found, [LAWS[0]])


def states(page) -> list[str]:
    return [cell["class"].removeprefix("state ") for cell in page.all("td") if cell.get("class", "")[:6] == "state "]


def test_what_caught_what_and_what_is_left():
    hunt = some()
    html = hunt_page(hunt)
    page = read(html)
    assert "✕ SURVIVED" in page.words
    assert [s["id"] for s in page.all("section")] == ["result", "left", "matrix", "bugs", "laws", "provenance"]
    cells = states(page)
    assert len(cells) == 3 * len(LAWS)
    assert (cells.count("caught"), cells.count("elsewhere"), cells.count("survived")) == (1, 2, 0)
    assert cells.count("held") == len(cells) - 3
    for caught in hunt.found:
        assert caught.mutant.change in page.words
    assert page.words.count("(survived)") == 4  # two bugs, in the matrix and in the table
    assert f"false alarm: {LAWS[0].id} – the correct decoder breaks it" in page.words
    assert f"{LAWS[0].id} (false alarm)" in page.words
    assert "a < b & <script>c</script>" in page.words
    assert b"<script>" not in html


def test_a_hunt_that_caught_all_leaves_nothing():
    hunt = some()
    hunt.found, hunt.false_alarms = hunt.found[:1], []
    page = read(hunt_page(hunt))
    assert "✓ CAUGHT" in page.words
    assert "left" not in [section["id"] for section in page.all("section")]


def test_a_law_that_was_not_tried_is_empty():
    hunt = some("first")
    for number, caught in enumerate(hunt.found):
        caught.tried = 1 + number
    assert states(read(hunt_page(hunt))).count("final") == 3  # of three columns: two, one and none were not tried


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    html = tmp_path / "page.html"
    asked = ("mutants", "--only", "masks.corner", "--laws", "first", "--examples", "2", "--quiet", "--html")
    assert command(monkeypatch, *asked, str(html)) == 0
    page = read(html.read_bytes())
    assert "✓ CAUGHT" in page.words
    assert "masks.corner" in page.words
    assert command(monkeypatch, *asked, str(tmp_path)) == 2
    assert "is a folder" in capsys.readouterr().err
