"""`sdvar-harness evidence`: tokens in files, judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import command


def written(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    file = tmp_path / "tokens.safetensors"
    save_file(tensors, file)
    return file


def test_what_sample_writes_is_taken(tmp_path: Path, monkeypatch, capsys):
    file, state, out = tmp_path / "t.safetensors", tmp_path / "state.json", tmp_path / "out.json"
    drawn = ("--seeds", "0", "--labels", "0:2", "--tokens", str(file), "--out", str(tmp_path / "s.png"))
    assert command(monkeypatch, "sample", *drawn) == 0
    capsys.readouterr()
    assert command(monkeypatch, "evidence", str(file), "--state", str(state), "--json", str(out)) == 3
    assert capsys.readouterr().out.startswith("INCONCLUSIVE 2 images prove little: ")
    assert json.loads(out.read_text())["images"] == 2
    assert command(monkeypatch, "sample", "--force", "--seeds", "1", *drawn[2:]) == 0
    assert command(monkeypatch, "evidence", str(file), "--state", str(state), "--json", str(out)) == 3
    assert json.loads(out.read_text())["images"] == 4  # it went on


def test_a_decoder_that_takes_one_token_for_all_is_a_defect(tmp_path: Path, monkeypatch, capsys):
    file = written(tmp_path, {"tokens": torch.full((2, 680), 7), "labels": torch.tensor([0, 1])})
    assert command(monkeypatch, "evidence", str(file), "--verbose") == 1
    said = capsys.readouterr().out
    assert said.startswith("DEFECT the tokens are as if ")
    assert "images are needed to notice if" in said


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": torch.zeros(1)}, "holds no tensor named tokens"),
        ({"tokens": torch.zeros(1, 680, dtype=torch.int64)}, "has no labels beside it"),
        ({"tokens": torch.zeros(1, 680, dtype=torch.int64), "labels": torch.zeros(1)}, "must have a list of integers"),
        ({"tokens": torch.zeros(1, 680, dtype=torch.int64), "labels": torch.tensor([True])}, "a list of integers"),
        (
            {"tokens": torch.zeros(2, 680, dtype=torch.int64), "labels": torch.tensor([0])},
            r"must be (images, 680), with a label an image (1)",
        ),
        ({"tokens": torch.full((1, 680), 512), "labels": torch.tensor([0])}, "tokens[0, 0]=512: must lie in 0..511"),
        ({"tokens": torch.zeros(1, 680, dtype=torch.int64), "labels": torch.tensor([11])}, "labels[0]=11"),
    ],
)
def test_what_is_no_list_of_tokens_is_bad_input_and_writes_nothing(
    tensors: dict[str, Tensor], message: str, tmp_path: Path, monkeypatch, capsys
):
    state = tmp_path / "state.json"
    assert command(monkeypatch, "evidence", str(written(tmp_path, tensors)), "--state", str(state)) == 2
    assert message in capsys.readouterr().err
    assert not state.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04", "is a zip archive, as of torch.save, that is cut short"),
        (b"\x00" * 64, "begins with zeros alone"),
        (b"\x08\0\0\0\0\0\0\0{}{}{}{}", "is a damaged safetensors file"),
    ],
)
def test_another_file_is_bad_input(content: bytes, said: str, tmp_path: Path, monkeypatch, capsys):
    file = tmp_path / "odd"
    file.write_bytes(content)
    assert command(monkeypatch, "evidence", str(file)) == 2
    assert f"file={file}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("t.safetensors", "./t.safetensors"), "file=t.safetensors: is named twice: no image may count twice"),
        (("t.safetensors", "--state", "t.safetensors"), "state=t.safetensors: is the file of "),
        (("t.safetensors", "--state", "a.json", "--json", "a.json"), "state=a.json: is the file of --json too"),
        (("t.safetensors", "--state", "nowhere/a.json"), "state=nowhere/a.json: folder nowhere is not there"),
    ],
)
def test_files_that_would_count_twice_or_be_lost_are_refused_before_anything_is_counted(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"tokens": torch.zeros(1, 680, dtype=torch.int64), "labels": torch.tensor([0])})
    Path("tokens.safetensors").rename("t.safetensors")
    assert command(monkeypatch, "evidence", *words) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_bad_file_after_a_good_one_counts_nothing(tmp_path: Path, monkeypatch, capsys):
    good = written(tmp_path, {"tokens": torch.zeros(1, 680, dtype=torch.int64), "labels": torch.tensor([0])})
    state = tmp_path / "state.json"
    assert command(monkeypatch, "evidence", str(good), str(tmp_path / "nowhere"), "--state", str(state)) == 2
    assert "no such file" in capsys.readouterr().err
    assert not state.exists()
