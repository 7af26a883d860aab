"""`--locate` from the command line: the line of a decoder in its own process, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.commands.running import run
from tests.unit.judge.planted_lines import TEN

SMALL = ("--seeds", "1", "--labels", "0", "--draft-len", "2")


def written(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str, name: str) -> tuple[str, ...]:
    """Write a decoder into a folder, go there, and return the options that name it."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.chdir(folder)
    return "--implementation", f"{name}:factory"


def test_verify_and_replay_name_the_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    tested = written(monkeypatch, tmp_path, TEN[0].source, "offset_decoder")
    outputs = ("--run", "run.db", "--json", "result.json", "--html", "page.html")
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL, "--locate", *outputs) == 1
    number = TEN[0].lines[0]
    text = f"offset_decoder.py:{number}, in inputs: x_1lD = network.embed(raw_1lC) + "
    assert f"line: {text}" in capsys.readouterr().out
    line = json.loads((tmp_path / "result.json").read_text())["line"]
    assert (line["file"], line["line"], line["function"]) == (str(tmp_path / "offset_decoder.py"), number, "inputs")
    assert line["stack"][-1].endswith("in decode: image.decode()")
    assert text.partition(":")[0] in (tmp_path / "page.html").read_text()
    assert run(monkeypatch, "replay", "run.db", "--locate") == 1
    assert f"line: {text}" in capsys.readouterr().out


def test_a_decode_that_crashes_and_another_decoder_in_the_references_place_are_not_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    tested = written(monkeypatch, tmp_path, TEN[0].source.replace("wrong = int(", "wrong = len("), "crashing_decoder")
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL, "--locate") == 1
    assert "line: TypeError: len() of a 0-d tensor in verify, crashing_decoder.py:100" in capsys.readouterr().out
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL, "--locate", "--against", "harness:build_decoder") == 1
    assert "line: not searched: another decoder stood in the reference's place" in capsys.readouterr().out
