"""`harness.verify` as people call it: a result that shows itself, exceptions, and a line of progress in notebooks."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest

import harness
from harness import InputError, Request, Settings, Verification
from tests.unit.report.reading import Reader

REQUEST = Request((3,), seed=1)


@pytest.fixture(scope="module")
def right() -> Verification:
    return harness.verify(harness.load_digits(), harness.build_decoder, Settings(5), REQUEST)


@pytest.fixture(scope="module")
def wrong() -> Verification:
    from harness.mutants.positions import OFFSET

    return harness.verify(
        harness.load_digits(), OFFSET, [Settings(2), Settings(1)], [REQUEST], terms=harness.Terms(in_process=True)
    )


def test_a_right_one_shows_itself(right: Verification):
    page = Reader(right._repr_html_().encode())
    assert not (page.wrong or page.open)
    assert page.words.startswith("IDENTICAL contract token-identical: 1 decode, 680 draws compared, 680 identical")
    assert "first defect" not in page.words


def test_a_wrong_one_names_the_first_defect(wrong: Verification):
    page = Reader(wrong._repr_html_().encode())
    assert page.words.startswith("DEFECT")
    assert "first defect: component positions" in page.words
    assert len(page.all("tr")) == 3


def test_text_from_outside_stays_text(wrong: Verification):
    from dataclasses import replace

    first = wrong.settings[0].rows[0].judgement.defects
    kept = first[0]
    first[0] = replace(kept, detail="<script>alert(1)</script>\x1b[31m")
    try:
        shown = wrong._repr_html_()
    finally:
        first[0] = kept
    assert "<script>" not in shown
    assert "\x1b" not in shown


def test_json_is_that_of_the_command(right: Verification):
    document = json.loads(right.to_json())
    assert (document["verdict"], document["draws"], document["first_divergence"]) == ("IDENTICAL", 680, None)


def test_a_row_a_setting_and_request(wrong: Verification):
    rows = wrong.to_records()
    assert [row["setting"] for row in rows] == ["draft_len=2", "draft_len=1"]
    assert all(row["verdict"] == "DEFECT" and row["draws"] == 680 and row["seed"] == 1 for row in rows)
    assert all(row["target_calls"] > 0 for row in rows)


def test_a_frame_where_pandas_is(wrong: Verification, monkeypatch: pytest.MonkeyPatch):
    class DataFrame:
        @staticmethod
        def from_records(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return rows

    pandas = ModuleType("pandas")
    pandas.DataFrame = DataFrame  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert wrong.to_frame() == wrong.to_records()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pandas: is not installed; pip install pandas"):
        wrong.to_frame()


def test_bad_input_is_an_exception():
    with pytest.raises(InputError, match="labels"):
        harness.verify(harness.load_digits(), harness.build_decoder, Settings(5), Request((77,)))


def test_a_notebook_is_told_how_far_it_is_and_a_script_is_not(monkeypatch: pytest.MonkeyPatch, capsys):
    said: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            said.append(data["text/plain"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        said.append(data["text/plain"])
        return Handle()

    shown = ModuleType("IPython.display")
    shown.display = display  # type: ignore[attr-defined]
    called: list[int] = []
    harness.verify(harness.load_digits(), harness.build_decoder, Settings(2), REQUEST, lambda: called.append(1))
    assert (called, said) == ([1], [])
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    harness.verify(harness.load_digits(), harness.build_decoder, Settings(2), REQUEST)
    assert [line.partition(",")[0] for line in said] == ["0 of 1 images", "1 of 1 images"]
    heard = capsys.readouterr()
    assert heard.out == heard.err == ""
