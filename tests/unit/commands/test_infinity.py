"""Infinity on the command line: files, a schedule and texts are all that is passed; bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import InputError
from harness.models.infinity.checkpoint import parse_schedule
from harness.verification import Question
from tests.helpers import command, tiny
from tests.published.checkout import make
from tests.regression.tampered import one_line
from tests.unit.speculative.test_infinity import TEXTS, pair

SIDES = "1x1,2x2,3x4,2x3,4x6/9x12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints under their published names: plain, patchified, the VAR of another; and texts."""
    place = tmp_path_factory.mktemp("infinity")
    for name, models in (("plain", pair()), ("patched", pair(patch=2))):
        for side in ("draft", "target", "vae"):
            weights = getattr(models, side).weights
            save_file({key: w.float().contiguous() for key, w in weights.items()}, place / f"{name}-{side}.safetensors")
    save_file(dict(tiny().target.weights), place / "var.safetensors")
    save_file({str(k): rows.numbers_TA for k, rows in enumerate(TEXTS)}, place / "texts.safetensors")
    both = {f"{word}{k}": rows.numbers_TA.clone() for word in ("", "negative/") for k, rows in enumerate(TEXTS)}
    save_file(both, place / "both.safetensors")
    save_file({"0": torch.zeros(7, 128)}, place / "long.safetensors")
    save_file({"negative/0": torch.zeros(2, 128)}, place / "odd.safetensors")
    return place


def words(folder: Path, *more: str, kind: str = "plain", **other: str) -> list[str]:
    """Return the options of a run; `other` files or values in the place of the usual ones, none for an empty one."""
    named = {"target": f"{kind}-target", "vae": f"{kind}-vae", "texts": "texts", "schedule": SIDES} | other
    files = {name: f"{folder}/{value}.safetensors" for name, value in named.items() if value and name != "schedule"}
    files |= {"schedule": named["schedule"]} if named["schedule"] else {}
    return [*(word for name, value in files.items() for word in (f"--{name}", value)), *more]


FEW = ("--seeds", "0", "--labels", "0,2", "--draft-len", "2")


@pytest.mark.parametrize(
    "more",
    [
        words(Path("{}"), *FEW, "--cfg", "3"),
        words(Path("{}"), *FEW, "--tau", "0.5", "--places=0,-1", "--top-p", "0.9", texts="both", draft="plain-draft"),
        words(Path("{}"), *FEW, "--noise", "batch", kind="patched"),
    ],
)
def test_the_own_decoder_is_identical(folder: Path, more: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = [word.replace("{}", str(folder)) for word in more]
    assert command(monkeypatch, "verify", *asked, "--json", str(tmp_path / "a.json"), "--draft-noise", "0.01") in (0, 3)
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["verdict"] in ("IDENTICAL", "TIE"), result


def test_a_covering_design_asks_for_no_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[Question] = []

    def stop(pair: object, question: Question, *others: object) -> None:
        asked.append(question)
        raise InputError("question", question.cover, "was asked", "go on")

    monkeypatch.setattr("harness.verification.answer_question", stop)
    assert command(monkeypatch, "verify", *words(folder, "--cover", texts="")) == 2
    assert "question=True: was asked" in one_line(capsys)
    assert asked[0].requests == ()


def test_published_code_is_judged_with_nothing_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkout = ("--implementation", "published:infinity", "--sequential", "--checkout")
    right, wrong = make(tmp_path, "infinity"), make(tmp_path, "infinity", "input-area")
    few = words(folder, *FEW[:4], "--cfg", "3")
    assert command(monkeypatch, "verify", *few, *checkout, str(right)) == 0
    assert "IDENTICAL" in capsys.readouterr().out
    assert command(monkeypatch, "verify", *few, *checkout, str(wrong), "--run", str(tmp_path / "a.db")) == 1
    assert "component resize" in capsys.readouterr().out
    assert command(monkeypatch, "replay", str(tmp_path / "a.db"), "--case", "0", "--trust") == 1
    assert "STILL FAILS" in capsys.readouterr().out


BAD = {
    "no texts": ({"texts": ""}, (), "texts=None: Infinity draws from encoded texts"),
    "no schedule": ({"schedule": "", "draft": "plain-draft"}, (), "is an Infinity transformer, not one of VAR"),
    "another ratio": ({"schedule": "1.1/1M"}, (), "schedule=1.1/1M: must begin with one of 1.0, 1.25"),
    "another size": ({"schedule": "1.0/2M"}, (), "schedule=1.0/2M: must end in one of 0.06M"),
    "no sides": ({"schedule": "1x1,2"}, (), "schedule=1x1,2: must list sides"),
    "first sides": ({"schedule": "2x2,4x4"}, (), "sides=((2, 2), (4, 4)): must be positive, and the first scale one"),
    "large sides": ({"schedule": "1x1,200x4"}, (), "must lie in 1..128"),
    "long text": ({"texts": "long"}, (), "must be 1..6 rows of width 128"),
    "texts of what": ({"texts": "odd"}, (), "must hold texts, and negative/NAME beside every NAME"),
    "no such text": ({}, ("--labels", "5"), "labels=5: must lie in 0..3"),
    "deep place": ({}, ("--places=-4",), "places=(-4,): must be 0, 1 or -1..-3"),
    "what place": ({}, ("--places", "late"), "places=late: must read 0,-5"),
    "cold": ({}, ("--tau", "0"), "must be positive"),
    "checkpoint of VAR": ({"target": "var"}, (), "target.*holds a VAR transformer, no Infinity"),
    "autoencoder": ({"vae": "plain-target"}, (), "holds a Infinity transformer, no binary autoencoder"),
    "mixed": ({"draft": "var"}, (), "draft.*holds a VAR transformer, no Infinity"),
    "half patchified": ({"vae": "patched-vae", "target": "patched-target", "draft": "plain-draft"}, (), "channels"),
    "VAR's sides": ({}, ("--patch-nums", "1,2"), "patch_nums=1,2: are VAR's; drop it"),
    "VAR's mode": ({}, ("--dtype", "autocast-bfloat16"), "is a mode of networks of VAR alone"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    other, more, said = BAD[name]
    assert command(monkeypatch, "verify", *words(folder, *more, **other)) == 2
    line = one_line(capsys)
    assert all(part in line for part in said.split(".*")), line


def test_texts_are_nothing_for_networks_of_labels(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, "verify", "--texts", str(folder / "texts.safetensors"), "--seeds", "0") == 2
    assert "texts=given: is nothing that the family var reads; drop it" in one_line(capsys)
    assert command(monkeypatch, "bench", *words(folder, texts="")) == 2
    assert "draws from texts, which this command does not take" in one_line(capsys)


def test_the_table_of_schedules_is_the_published_one():
    positions = [
        sum(h * w for h, w in parse_schedule(f"{key}/{size}").sides)
        for size in ("1M", "0.06M")
        for key in ("1.0", "1.25", "1.333", "1.5", "1.75", "2.0", "2.5", "3.0")
    ]
    assert positions == [10521, 10774, 10973, 10997, 11252, 11269, 10805, 11123,
                         521, 614, 665, 533, 472, 451, 555, 509]  # fmt: skip
    assert parse_schedule("0.333/0.06M").full == (37, 111)
    assert parse_schedule("1x1,2x3").full == (2, 3)
    assert parse_schedule(SIDES).full == (9, 12)
