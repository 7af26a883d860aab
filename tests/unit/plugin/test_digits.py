"""The file of known failures: every name is one, and has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.laws import Violation
from harness.laws._conformance import LAWS
from harness.plugin._checking import DefectFound, Unproven
from harness.plugin._digits import read_known
from harness.plugin._items import CheckItem, mark_known


def test_laws_and_cases_with_reasons(tmp_path: Path):
    file = tmp_path / "known.toml"
    file.write_text('# since May\n"masks.future" = "ours looks ahead, #12"\n"digits[close-5]" = "likewise"\n')
    assert read_known(file) == {"masks.future": "ours looks ahead, #12", "digits[close-5]": "likewise"}
    file.write_text("")
    assert read_known(file) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"masks.futur" = "a"', "is no law and no case; did you mean masks.future?"),
        ('masks.future = "a"', "is a table, or a name without quotes"),
        ('"masks.future" = " "', "needs a reason"),
        ('"masks.future" = 3', "needs a reason"),
        ("masks.future", "is no TOML"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str, said: str):
    file = tmp_path / "known.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_known(file)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path):
    with pytest.raises(InputError, match="no such file; pass a TOML file"):
        read_known(tmp_path / "known.toml")
    (tmp_path / "known.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is no TOML"):
        read_known(tmp_path / "known.toml")


def test_what_is_known_to_fail_must_and_by_nothing_else():
    marks: list[pytest.MarkDecorator] = []
    law = LAWS[0]
    item = object.__new__(CheckItem)  # as pytest has it, but for its parents
    item.name, item.add_marker = law.id, marks.append
    mark_known([item], {"another.law": "other"})
    assert marks == []
    mark_known([item], {law.id: "see #12"})
    (mark,) = marks
    expected = {"reason": "see #12", "strict": True, "raises": (Violation, DefectFound, Unproven)}
    assert (mark.name, mark.kwargs) == ("xfail", expected)
