"""The page of `golden diff`: what changes, the images on disk and of this code, and what is no image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.golden.plan import GOLDENS
from harness.golden.record import WHOLE_FILE, Change, Regeneration
from harness.golden.store import as_bytes, read_recording
from harness.report.html.recordings import regeneration_page
from tests.helpers import command
from tests.unit.report.reading import read as read_page

NAME = "golden-tiny-cpu.safetensors"
CASE = "one-phi-plain"
LATE = 1 + 4  # the first position of scale 2: its sides are 1, 2, 4 and 6


def changed(*changes: Change, path: Path = GOLDENS / NAME, **others: Tensor) -> Regeneration:
    """Return a file of which one case has other tensors now."""
    before = read_recording(GOLDENS / NAME)
    tensors = dict(before.tensors) | {f"{CASE}/{name}": tensor for name, tensor in others.items()}
    return Regeneration(path, "filled", before.cases, tensors, "", changes, ())


def recorded(name: str) -> Tensor:
    return read_recording(GOLDENS / NAME).of(CASE)[name]


def other() -> Regeneration:
    tokens, image = recorded("tokens").clone(), recorded("image").clone()
    tokens[0, LATE] = (tokens[0, LATE] + 1) % 32
    image[0] = 1 - image[0]
    return changed(Change(CASE, "values", 2, 1, 0.5, 0.25), Change(WHOLE_FILE, "weights"), tokens=tokens, image=image)


def test_both_images_stand_beside_each_other():
    page = read_page(regeneration_page([other()], "cpu"))
    assert "? CHANGED" in page.words
    assert [image["alt"].partition(",")[0] for image in page.all("img")][:2] == [
        "Image of the recording", "Image of the code of today",
    ]  # fmt: skip
    assert "1 of 57 tokens change. Framed: scale 2, position 5 (row 0, column 0 of 4 × 4)." in page.words
    assert "All 57 tokens stay." in page.words  # the other image of the case
    assert "no pixel differs" in page.words
    assert len(page.all("img")) == 3 + 2
    assert sum(span.get("class") == "marker" for span in page.all("span")) == 3
    assert f"{CASE} values what is on disk no longer holds against this code 2 1 0.5 0.25" in page.words
    assert f"{WHOLE_FILE} weights recorded with other weights – 0 – –" in page.words


def test_nothing_changed_is_said():
    page = read_page(regeneration_page([changed()], "cpu"))
    assert "✓ UNCHANGED" in page.words
    assert [section["id"] for section in page.all("section")] == ["result", "provenance"]


def test_what_has_only_one_side_is_shown_alone(tmp_path: Path):
    page = read_page(regeneration_page([changed(Change(CASE, "added"), path=tmp_path / NAME)], "cpu"))
    assert len(page.all("img")) == 2
    assert "Planned, and not on disk." in page.words


@pytest.mark.parametrize("shape", [(2,), (2, 1, 4, 4), (0, 3, 4, 4), (1, 3, 4, 4)])
def test_a_tensor_that_is_no_image_is_not_shown(shape: tuple[int, ...], tmp_path: Path):
    before = read_recording(GOLDENS / NAME)
    tensors = dict(before.tensors) | {f"{CASE}/image": torch.zeros(shape)}
    (tmp_path / NAME).write_bytes(as_bytes(dict(before.metadata), before.cases, tensors))
    page = read_page(regeneration_page([changed(Change(CASE, "form"), path=tmp_path / NAME)], "cpu"))
    assert len(page.all("img")) == 2  # of this code
    assert "Other tensors, shapes or dtypes." in page.words


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    html = tmp_path / "page.html"
    monkeypatch.setattr("harness.golden.record.regenerate_all", lambda *_: [changed(), other()])
    assert command(monkeypatch, "golden", "diff", "--html", str(html)) == 1
    assert "2 changes" in capsys.readouterr().out
    assert "Images before and after" in read_page(html.read_bytes()).words
    content = (GOLDENS / NAME).read_bytes()
    assert command(monkeypatch, "golden", "diff", "--html", str(GOLDENS / NAME)) == 2
    assert "error: " in capsys.readouterr().err
    assert (GOLDENS / NAME).read_bytes() == content
