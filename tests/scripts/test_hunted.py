"""The table of planted bugs, from what a hunt wrote and what `verify` says of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.laws import LAWS, Case, Violation
from harness.mutants._hunt import MUTANTS, Caught, Hunt
from harness.report._laws import hunt_json
from scripts.hunted import Found, hunt_markdown, main, verified
from scripts.pages import DOCS

NAMED = next(mutant for mutant in MUTANTS if mutant.component)


def hunted(*found: Caught) -> bytes:
    return hunt_json(Hunt("first", 12, 0, "cpu", "float32", list(found)))


def test_a_row_says_what_caught_a_bug_first():
    broken, law = Violation(LAWS[0], Case(), "rows differ"), f"`{LAWS[0].id}`"
    rows = json.loads(hunted(*[Caught(NAMED, [broken], 1, 12.5)] * 3, Caught(NAMED)))["mutants"]
    missed = Found("", 9.0)
    lines = hunt_markdown(rows, [Found(NAMED.component, 2.5), Found("elsewhere", 3.0), missed, missed]).splitlines()
    assert lines[0] == "`verify` alone catches 2 of 4; of the 2 with a stated component it names 1 rightly."
    assert [line.split(" | ")[-3:] for line in lines[4:]] == [
        [f"verify ({NAMED.component}, 2.5 s)", law, "12.5 |"],
        [f"verify (elsewhere, not {NAMED.component}, 3.0 s)", law, "12.5 |"],
        ["laws", law, "12.5 |"],
        ["SURVIVED", "-", "- |"],
    ]


def test_verify_names_the_component_of_a_bug():
    assert verified(NAMED.id).component == NAMED.component


def test_a_page_without_markers_is_left_alone(tmp_path: Path):
    page, hunt = tmp_path / "page.md", tmp_path / "hunt.json"
    page.write_text("nothing")
    hunt.write_bytes(hunted())
    with pytest.raises(InputError, match=r"must hold the lines <!-- mutants: begin -->"):
        main([str(hunt), "--into", str(page)])
    assert page.read_text() == "nothing"


def test_what_stands_between_the_markers_is_replaced(tmp_path: Path):
    page, hunt = tmp_path / "page.md", tmp_path / "hunt.json"
    page.write_text("a\n<!-- mutants: begin -->\nold\n<!-- mutants: end -->\nb\n")
    hunt.write_bytes(hunted())
    main([str(hunt), "--into", str(page)])
    assert page.read_text() == f"a\n<!-- mutants: begin -->\n{hunt_markdown([], [])}<!-- mutants: end -->\nb\n"


def test_a_certificate_says_what_the_page_says():
    stored = json.loads((DOCS.parent / "harness" / "mutants" / "hunted.json").read_text())
    page = (DOCS / "laws.md").read_text()
    assert f"`verify` alone catches {stored['caught']} of {stored['planted']};" in page
