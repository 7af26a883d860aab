"""`exactness` says what it measured, and fails closed where a draft length must be exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import command
from tests.unit.bench.machines import Apart, RowByRow


def test_a_draft_length_must_be_exact_where_that_is_required(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked, file = ("exactness", *pair, "--draft-len", "2,3", "--require-exact", "--batches", "1,2"), tmp_path / "e.json"
    with RowByRow():
        assert command(monkeypatch, *asked, "--json", str(file)) == 0
    said = capsys.readouterr().out
    assert "holds bit for bit (of 1 to 3; a bonus scale counts as drafted): 1, 2, 3\n" in said
    assert "EXACT draft length 2: every bit agrees" in said
    document = json.loads(file.read_text())
    assert document["exact_lengths"] == [1, 2, 3]
    assert document["expected_ties"] == {"2": 0, "3": 0}
    assert {(row["batch"], row["images"]) for row in document["rows"]} == {(1, 1), (2, 1), (2, 2)}
    with RowByRow(), Apart(2 * 14):  # at draft length 3 alone
        assert command(monkeypatch, *asked) == 1
    said = capsys.readouterr().out
    assert "\nEXACT draft length 2" in said
    assert "\nINEXACT draft length 3" in said
    assert command(monkeypatch, "exactness", *pair, "--draft-len", "4") == 2
    assert "draft_len=4: must lie in 1..3" in capsys.readouterr().err
