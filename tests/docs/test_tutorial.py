"""The tutorial's commands, one after the other: each ends and says as the page has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, run, says, told

TUTORIAL = ROOT / "docs" / "tutorial.md"
LONG = ("--quiet", "--sdvar-report")  # of section 6: some minutes for this plain decoder


def walked(folder: Path, long: bool) -> None:
    for one in told(TUTORIAL):
        if any(word in one.line for word in LONG) and not long:
            continue
        done = run(one.line, folder)
        said = done.stdout + done.stderr
        assert done.returncode == one.status, f"{one.line}\n{said[-3000:]}"
        missing = says(said, one.output)
        assert not missing, f"{one.line}\nlacks: {missing}\n{said[-3000:]}"


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_as_it_says(tmp_path: Path):
    walked(tmp_path, long=True)


def test_outputs_are_compared_line_by_line():
    output = "a\nDEFECT 3 of 4\nz\n"
    assert says(output, ("…", "DEFECT … of 4")) == ""
    assert says(output, ("DEFECT … of 5",)) == "DEFECT … of 5"
    assert says(output, ("z", "a")) == "a"
    assert says(output, ("DEFECT",)) == "DEFECT"


def test_the_page_holds_commands_that_fail_and_pass():
    found = told(TUTORIAL)
    assert len(found) > 12
    assert {one.status for one in found} == {0, 1}
    assert sum(bool(one.output) for one in found) > 10
