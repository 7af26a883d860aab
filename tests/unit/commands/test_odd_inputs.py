"""Odd inputs are one line and status 2: what is no file, numbers of any length, sizes beyond any recording."""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.content import GENERATOR
from harness.golden import _metadata as metadata
from tests.helpers import command, digits, recorded
from tests.unit.commands.ended import recording, the_line

TYPOS = {  # what is typed, and what the line ends with
    ("verify", "--sed", "3"): "; see sdvar-harness verify --help-all",
    ("golden", "check", "--onyl", "x"): "; see sdvar-harness golden check --help-all",
    ("verfy",): "; see sdvar-harness --help",
    ("verify", "--target", "nofile.pth"): "target=nofile.pth: no such file; see how it is spelt",
    ("verify", "--top-p", "90"): "is a share, and must lie in [0, 1]; pass --top-p 0.9, or 0 for no filter",
    ("replay", "page.html"): "is a page of --html; pass the file of --run that it was made from",
}
DIGITS = "9" * 5000


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


INPUTS: dict[str, Callable[[Path], object]] = {
    "pipe": fifo,
    "socket": unix_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
}
READERS = {
    "draft": ("verify", "--target", "x", "--vae", "x", "--draft"),
    "golden": ("golden", "check"),
    "budgets": ("verify", "--budgets"),
    "into": ("calibrate", "--into"),
}


@pytest.mark.parametrize("kind", [*INPUTS, "long"])
@pytest.mark.parametrize("name", READERS)
def test_an_input_that_is_no_file_never_blocks(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    path = Path("n" * 300 if kind == "long" else "x")
    INPUTS.get(kind, lambda path: None)(path)
    start = time.perf_counter()
    assert command(monkeypatch, *READERS[name], str(path)) == 2
    assert time.perf_counter() - start < 20
    assert the_line(capsys.readouterr().err).startswith(f"error: {name}={str(path)[:200]}")


NUMBERS = {
    "seeds": ("verify", "--seeds", DIGITS),
    "labels": ("verify", "--labels", DIGITS),
    "draft_len": ("verify", "--draft-len", DIGITS),
    "draft_len of sample": ("sample", "--draft-len", DIGITS),
    "range": ("verify", "--seeds", f"0:{DIGITS[:4000]}"),
    "seed": ("verify", "--seeds", DIGITS[:4000]),
    "batch": ("verify", "--batch", DIGITS),
    "cfg": ("verify", "--cfg", DIGITS),
    "top_k": ("verify", "--top-k", DIGITS[:4000]),
    "policy": ("verify", "--policy", f"topk-match:{DIGITS}:0.5"),
    "match": ("verify", "--policy", f"match:{DIGITS}"),
    "device": ("verify", "--device", f"cuda:{DIGITS}"),
    "batches": ("bench", "--batches", DIGITS[:30]),
    "batches of calibrate": ("calibrate", "--batches", DIGITS[:30]),
    "images": ("quality", "--images", DIGITS[:30]),
    "examples": ("mutants", "--examples", DIGITS[:30]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_any_length_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *NUMBERS[name]) == 2
    assert the_line(capsys.readouterr().err).startswith("error: ")


ABSURD: dict[str, dict[str, object]] = {
    "V": {"V": 10**12},
    "D": {"D": 10**9},
    "depth": {"depth": 10**12},
    "draft_depth": {"draft_depth": 10**12},
    "classes": {"classes": 10**12},
    "patch_nums": {"patch_nums": list(range(1, 10**6 + 1))},
    "side": {"patch_nums": [1, 10**6]},
    "infinite side": {"patch_nums": [1, float("inf")]},
    "φ": {"phi": f"{10**12} shared"},
    "vae_mult": {"vae_mult": [1] * 40},
    "weights": {"D": 2**14, "depth": 128, "H": 2**8},
    "count": {"labels": None, "count": 10**12},
    "cfg": {"cfg": 10**400},
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_in_metadata_are_refused_before_memory_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    recording(tmp_path / "absurd", ABSURD[name])
    digits()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(torch, "empty", None)  # nothing of any size is made
    assert command(monkeypatch, "golden", "check", str(tmp_path / "absurd")) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert the_line(capsys.readouterr().err).startswith("error: case shared-adaln-0: ")


@pytest.mark.parametrize("whole", [False, True])
def test_absurd_sizes_in_a_header_are_refused_before_memory_is_taken(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    size = 4 * 10**12
    header = json.dumps({"a/tokens": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "absurd"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    if whole:
        os.truncate(path, 8 + len(header) + size)  # a hole: it takes no room on the disk
    assert command(monkeypatch, "golden", "check", str(path)) == 2
    said = the_line(capsys.readouterr().err)
    assert ("more than the 1073741824 of any recording" if whole else "is cut short: ") in said


def test_the_limits_leave_room_for_every_recording():
    pair, largest = digits(), 1
    for name in ("cpu", "variants-cpu"):
        tensors, _ = recorded(name)
        largest = max(largest, *(tensor.numel() for tensor in tensors.values()))
    metadata.check_batch(40, pair.pyramid, pair.target.config, pair.vae.config.downsampling)
    assert 10 * largest < metadata.MOST_NUMBERS
    with pytest.raises(Exception, match="must make tensors of at most"):
        metadata.check_batch(10**4, pair.pyramid, pair.target.config, pair.vae.config.downsampling)


def test_the_json_of_a_golden_check_is_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "recording"
    recording(path, {})
    before = path.read_bytes()
    assert command(monkeypatch, "golden", "check", str(path), "--json", str(path)) == 2
    assert "is the file of --file" in the_line(capsys.readouterr().err)
    assert path.read_bytes() == before


def test_goldens_that_are_missing_are_a_defect_and_a_folder_that_is_not_there_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, "golden", "check", "--folder", str(tmp_path)) == 1
    assert "golden is missing: restore or record it" in capsys.readouterr().out
    for action in ("check", "diff"):
        assert command(monkeypatch, "golden", action, "--folder", str(tmp_path / "nowhere")) == 2
        said = the_line(capsys.readouterr().err)
        assert "nowhere: no such folder; pass --folder DIR, where goldens lie" in said


@pytest.mark.parametrize("words", TYPOS, ids=" ".join)
def test_a_typo_is_told_what_is_meant(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html>{GENERATOR}<html></html>")
    assert command(monkeypatch, *words) == 2
    assert the_line(capsys.readouterr().err).endswith(TYPOS[words])
