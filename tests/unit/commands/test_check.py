"""`verify --certificate` and `check`, as they are typed: exit statuses, lines, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.certificates import FOLDER
from tests.helpers import command

ASKED = ("--seeds", "0:1", "--labels", "0,1", "--draft-len", "2", "--quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run and its certificate, and one made when the run was gone on with."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, more in (("first", ()), ("again", ("--resume",))):
        words = ("--run", f"{folder}/run.db", "--certificate", f"{folder}/{name}.json", "--challenged", "1", *more)
        with pytest.MonkeyPatch.context() as patch:
            assert command(patch, "verify", *ASKED, *words) == 0
    return folder


def test_a_run_that_is_gone_on_with_has_the_same_certificate(place: Path):
    first, again = (json.loads((place / f"{name}.json").read_text())["predicate"] for name in ("first", "again"))
    assert {name for name in first if first[name] != again[name]} <= {"digest", "budget"}
    assert len(first["challenged"]) == 1


def test_a_check_says_what_is_certified_and_what_was_not_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, "check", f"{place}/first.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "IDENTICAL of harness:build_decoder; unsigned: its digest shows accidents, and no more" in lines[0]
    assert lines[1].startswith("not asked: ") and "bonus scales" in lines[1]
    assert lines[-2].startswith("not checked: reasons for INCONCLUSIVE, laws, evidence, closest draws")
    assert lines[-2].endswith("; that its decoder draws these tokens: pass --decode")
    assert lines[-1] == "REPRODUCED: 1 of 2 images computed anew"


def test_other_networks_are_unverifiable_with_exit_status_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, "check", f"{FOLDER}/identical.json") == 3
    out = capsys.readouterr().out
    assert "UNVERIFIABLE: its networks, tiny of the family var, are not at hand: name them" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("check", "nowhere.json"), "certificate=nowhere.json: no such file; pass a file of verify --certificate"),
        (("check", f"{FOLDER}/expected.txt"), "is no certificate; pass a file of verify --certificate"),
        (("check", f"{FOLDER}/a-key-twice.json"), "does not hold together (it has a key twice); ask for it again"),
        (("check", f"{FOLDER}/signed.json"), "is signed, and nobody says by whom; pass --key FILE"),
        (("verify", "--key", "key.pem"), "key=key.pem: is of a certificate; pass --certificate FILE, too"),
        (("verify", "--certificate", "c.json", "--challenged", "0"), "challenged=0: must be 1 or more"),
        (("verify", "--certificate", "c.json", "--key", f"{FOLDER}/key.pub"), "is no private Ed25519 key as PEM"),
        (
            ("verify", "--certificate", "c.json", "--against", "a:b"),
            "certificate=c.json: has no decoder in the reference's place; drop it, or --against",
        ),
        (
            ("verify", "--certificate", "c.json", "--texts", "t.safetensors"),
            "certificate=c.json: has no texts that requests draw from; drop it, or --texts",
        ),
        (
            ("verify", "--certificate", "c.json", "--models", "digits-bits"),
            "certificate=c.json: has no texts that requests draw from; drop it, or --models",
        ),
        (
            ("verify", "--certificate", "c.json", "--may-differ-from", "3"),
            "certificate=c.json: has no scale that tokens may differ from; drop it, or --may-differ-from",
        ),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, *words) == 2
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1
