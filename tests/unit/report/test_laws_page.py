"""The page of a run of laws: every state by a word, the headline is the worst, and nothing tried proves nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from harness.judge._verdict import Verdict
from harness.laws._engine import Scope
from harness.report._laws import CheckRow, check_line
from harness.report.html._laws import laws_page
from harness.schema import record_of
from tests.unit.report.reading import read

HELD = CheckRow("masks.future", "law", "Holds.", ("decode",), Verdict.IDENTICAL, 20, 19, 1, 1.5)
BROKEN = replace(
    HELD, id="masks.visible", verdict=Verdict.DEFECT, finding="<script>a</script> differs", case="Case(V=3)",
    replay="check('masks.visible', 'mine:f', Case(V=3))",
)  # fmt: skip
UNPROVEN = replace(HELD, id="masks.definition", verdict=Verdict.INCONCLUSIVE, exercised=0, why="every one was trivial")
ABSENT = replace(HELD, id="state.sync", verdict=None, examples=0, exercised=0, why="no parts")
DIGITS = CheckRow("digits[close-2]", "digits", "on digits", ("decode",), Verdict.TIE, 5, 5)


def words(*rows: CheckRow) -> str:
    return read(laws_page(rows, "mine:f", Scope(20, 3))).words


def test_all_states_are_told_by_word():
    said = words(HELD, BROKEN, UNPROVEN, ABSENT, DIGITS, replace(BROKEN, id="masks.dependency", known="see #12"))
    assert "✕ DEFECT" in said
    for part in ("broken: masks.visible – <script>a</script> differs", "unproven: masks.definition", "no parts",
                 "known to fail: masks.dependency – see #12", "check('masks.visible', 'mine:f', Case(V=3))",
                 "Up to 20 cases a law, seed 3", "digits[close-2]", "95 %"):  # fmt: skip
        assert part in said, part


@pytest.mark.parametrize(
    ("rows", "headline"),
    [
        ((HELD, ABSENT, DIGITS), "✓ IDENTICAL"),
        ((), "? INCONCLUSIVE"),
        ((ABSENT,), "? INCONCLUSIVE"),
        ((HELD, UNPROVEN), "? INCONCLUSIVE"),
        ((HELD, replace(BROKEN, known="see #12")), "? DEFECT"),
        ((replace(HELD, known="see #12"),), "✕ DEFECT"),
        ((HELD, BROKEN), "✕ DEFECT"),
    ],
)
def test_the_headline_is_the_worst(rows: tuple[CheckRow, ...], headline: str):
    assert headline in words(*rows)


def test_a_row_survives_json():
    for row in (BROKEN, ABSENT):
        assert record_of(CheckRow, json.loads(json.dumps(asdict(row)))) == row


def test_lines_of_the_terminal():
    assert check_line(HELD).endswith("20 examples,  95% not trivial, 1 refused")
    assert check_line(ABSENT).endswith("does not apply: no parts")
    assert check_line(BROKEN).endswith(": BROKEN, watches decode")
    assert check_line(DIGITS).endswith("5 images, TIE")
    assert check_line(replace(HELD, known="see #12")).endswith(": known to fail (see #12), and does not")
