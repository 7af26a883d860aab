"""The table of planted bugs, from what a hunt wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.judge import Verdict
from harness.laws import LAWS, Case, Violation
from harness.mutants._hunt import MUTANTS, Caught, Hunt, VerifyFinding
from harness.report._mutants import hunt_json
from scripts.hunted import main

PAGE = "a\n<!-- mutants: begin -->\nold\n<!-- mutants: end -->\nb\n"
NAMED = next(mutant for mutant in MUTANTS if mutant.component)


def hunted(folder: Path, *found: Caught) -> tuple[str, ...]:
    (folder / "hunt.json").write_bytes(hunt_json(Hunt("first", 12, 0, "cpu", "float32", list(found))))
    (folder / "page.md").write_text(PAGE)
    return str(folder / "hunt.json"), "--into", str(folder / "page.md")


def test_a_row_says_what_caught_a_bug_first(tmp_path: Path):
    broken = Violation(LAWS[0], Case(), "rows differ")
    right = VerifyFinding(Verdict.DEFECT, NAMED.component, "", 2.5)
    wrong = VerifyFinding(Verdict.DEFECT, "elsewhere", "", 3.0)
    missed = VerifyFinding(Verdict.IDENTICAL, "", "", 9.0)
    found = [Caught(NAMED, [broken], 1, 12.5, verified=each) for each in (right, wrong, missed)]
    main(hunted(tmp_path, *found, Caught(NAMED, verified=missed)))
    before, *lines, after = (tmp_path / "page.md").read_text().splitlines()
    assert (before, after) == ("a", "b")
    assert lines[1] == "`verify` alone catches 2 of 4; of the 2 with a stated component it names 1 rightly."
    caught = [line.split(" | ")[-3:] for line in lines[5:9]]
    law = f"`{LAWS[0].id}`"
    assert caught == [
        [f"verify ({NAMED.component}, 2.5 s)", law, "12.5 |"],
        [f"verify (elsewhere, not {NAMED.component}, 3.0 s)", law, "12.5 |"],
        ["laws", law, "12.5 |"],
        ["SURVIVED", "-", "- |"],
    ]


def test_a_page_without_markers_is_left_alone(tmp_path: Path):
    words = hunted(tmp_path)
    assert json.loads((tmp_path / "hunt.json").read_text())["mutants"] == []
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(InputError, match=r"must hold the lines <!-- mutants: begin -->"):
        main(words)
    assert (tmp_path / "page.md").read_text() == "nothing"
