"""--models digits-bits, in every command that takes networks by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import command
from tests.published.checkout import make
from tests.regression.tampered import one_line

NAMED = ("--models", "digits-bits")
FEW = ("--seeds", "0", "--labels", "0,7")
PLAIN = ("--draft-len", "2", "--no-locate")


def test_verify_keeps_a_run_that_is_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    run, found = tmp_path / "a.db", tmp_path / "a.json"
    wrong = ("--implementation", "tests.doors:wrong_token", "--in-process")
    assert command(monkeypatch, "verify", *NAMED, *FEW, *PLAIN, "--json", str(found)) == 0
    assert json.loads(found.read_text())["verdict"] == "IDENTICAL"
    assert command(monkeypatch, "verify", *NAMED, *FEW, *PLAIN, *wrong, "--run", str(run)) == 1
    assert command(monkeypatch, "replay", str(run), "--case", "0", "--trust", "--in-process") == 1


def test_its_first_text_is_no_unconditional_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = tmp_path / "a.json"
    assert command(monkeypatch, "verify", *NAMED, "--seeds", "0", "--labels", "0", *PLAIN, "--json", str(found)) == 0
    assert json.loads(found.read_text())["remarks"] == {}


def test_published_code_loads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = ("--implementation", "published:infinity", "--sequential", "--no-locate", "--checkout")
    right, wrong = make(tmp_path, "infinity"), make(tmp_path, "infinity", "input-area")
    assert command(monkeypatch, "verify", *NAMED, *FEW, *plain, str(right)) == 0
    assert "IDENTICAL" in capsys.readouterr().out
    assert command(monkeypatch, "verify", *NAMED, *FEW, *plain, str(wrong)) == 1
    assert "component resize" in capsys.readouterr().out


def test_images_are_drawn_and_bet_on_and_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokens = tmp_path / "tokens.safetensors"
    drawn = ("--out", str(tmp_path / "a.png"), "--tokens", str(tokens))
    assert command(monkeypatch, "sample", *NAMED, *FEW, *drawn) == 0
    assert command(monkeypatch, "evidence", *NAMED, str(tokens)) == 3  # two images prove little
    assert command(monkeypatch, "bench", *NAMED, "--repeats", "1", "--draft-len", "2") == 0
    assert "speculative decoding" in capsys.readouterr().out


@pytest.mark.slow
def test_its_digits_are_recognised_and_its_parts_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    many = ("--images", "80", "--batch", "40", "--policies", "coupled", "--json", str(tmp_path / "q.json"))
    assert command(monkeypatch, "quality", *NAMED, *many) == 0
    rows = json.loads((tmp_path / "q.json").read_text())["rows"]
    assert rows[0]["accuracy"]["value"] > 0.85  # of the target
    assert command(monkeypatch, "parts", *NAMED, "--examples", "1", "--labels", "0,7") == 0


def test_what_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for words, said in (
        (("verify", *FEW, "--certificate", "c.json"), "has no texts that requests draw from"),
        (("verify", "--labels", "10"), "labels=(10,): must number texts"),
        (("verify", "--schedule", "1x1,2x2"), "says what a checkpoint file does not tell"),
        (("verify", "--dtype", "autocast-bfloat16"), "is a mode of networks of VAR alone"),
        (("quality", "--policies", "topk-match:5:0.5"), "K must lie in 1..V=2"),
    ):
        assert command(monkeypatch, words[0], *NAMED, *words[1:]) == 2
        assert said in one_line(capsys), said


def test_the_decoder_that_init_writes_refuses_another_family(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "init", "mine.py") == 0
    assert command(monkeypatch, "verify", *NAMED, *FEW, *PLAIN, "--implementation", "mine:factory") == 2
    rule = "models=digits-bits: are no networks of VAR, which this decoder draws with; pass --models digits"
    assert rule in " ".join(capsys.readouterr().err.split())
