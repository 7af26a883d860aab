"""The pages of `golden check` and `golden diff`: the verdict, what is wrong or changes and where, images of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.golden._check import check_recording, recorded_cases
from harness.golden._plan import GOLDENS
from harness.golden._record import WHOLE_FILE, Change, Regeneration
from harness.golden._store import Recording, as_bytes, read_recording
from harness.report.html._commands import MOST_IMAGES, recordings_page, regeneration_page
from tests.helpers import command
from tests.unit.report.reading import read as read_page

NAME = "golden-tiny-cpu.safetensors"
CASE = "one-phi-plain"
LATE = 1 + 4  # the first position of scale 2: its sides are 1, 2, 4 and 6
CPU = torch.device("cpu")


def some(*, wrong: bool) -> Recording:
    """Return two cases of a file, one of them with another token and another image."""
    whole = read_recording(GOLDENS / NAME)
    cases = tuple(case for case in whole.cases if case.id in (CASE, "one-phi-filtered"))
    assert len(cases) == 2
    tensors = {f"{case.id}/{name}": t for case in cases for name, t in whole.of(case.id).items()}
    if wrong:
        tokens, image = tensors[f"{CASE}/tokens"].clone(), tensors[f"{CASE}/image"].clone()
        tokens[0, LATE] = (tokens[0, LATE] + 1) % 32
        image[0] = 1 - image[0]
        tensors |= {f"{CASE}/tokens": tokens, f"{CASE}/image": image}
    return replace(whole, cases=cases, tensors=tensors)


def page_of(recording: Recording, words: str = "") -> bytes:
    cases = recorded_cases(recording, CPU)
    result = check_recording(recording, cases, CPU)
    result.unverified = words
    return recordings_page([result], [(recording, cases)], "cpu")


def test_what_does_not_hold_is_told_and_shown():
    page = read_page(page_of(some(wrong=True)))
    assert "✕ DEFECT" in page.words
    assert f"Case {CASE} of " in page.words
    assert "scale 2, position 5" in page.words
    assert "1 of 57 tokens change. Framed: scale 2, position 5 (row 0, column 0 of 4 × 4)." in page.words
    assert [image["alt"].partition(",")[0] for image in page.all("img")][:2] == [
        "Image of the recording", "Image of the code of today",
    ]  # fmt: skip
    assert f"{CASE} DEFECT 114 113" in page.words


def test_what_holds_is_a_table_without_images():
    page = read_page(page_of(some(wrong=False)))
    assert "✓ IDENTICAL" in page.words
    assert "2 of 2 cases, 228 draws compared" in page.words
    assert [section["id"] for section in page.all("section")] == ["result", "cases", "provenance"]


def test_what_was_not_compared_is_said():
    page = read_page(page_of(some(wrong=False), "recorded on <cuda>"))
    assert "? INCONCLUSIVE" in page.words
    assert "UNVERIFIED: recorded on <cuda>" in page.words


def test_images_are_no_more_than_stated():
    recording = some(wrong=True)
    cases = [replace(recorded_cases(recording, CPU)[0], id=CASE)]
    result = check_recording(recording, cases, CPU)
    result.cases *= MOST_IMAGES
    page = read_page(recordings_page([result], [(recording, cases)], "cpu"))
    assert f"{2 * MOST_IMAGES} images in all; {MOST_IMAGES} are shown" in page.words


def test_golden_check_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    recording, html = some(wrong=True), tmp_path / "page.html"
    path = tmp_path / "bent.safetensors"
    metadata = {name: value for name, value in recording.metadata.items() if name != "cases"}
    path.write_bytes(as_bytes(metadata, recording.cases, recording.tensors))
    assert command(monkeypatch, "golden", "check", str(path), "--html", str(html)) == 1
    capsys.readouterr()
    assert "What does not hold" in read_page(html.read_bytes()).words
    content = path.read_bytes()
    assert command(monkeypatch, "golden", "check", str(path), "--html", str(path)) == 2
    assert "error: " in capsys.readouterr().err
    assert path.read_bytes() == content


def changed(*changes: Change, path: Path = GOLDENS / NAME, **others: Tensor) -> Regeneration:
    """Return a file of which one case has other tensors now."""
    before = read_recording(GOLDENS / NAME)
    tensors = dict(before.tensors) | {f"{CASE}/{name}": tensor for name, tensor in others.items()}
    return Regeneration(path, "filled", before.cases, tensors, "", changes, ())


def recorded(name: str) -> Tensor:
    return read_recording(GOLDENS / NAME).of(CASE)[name]


def regenerated() -> Regeneration:
    tokens, image = recorded("tokens").clone(), recorded("image").clone()
    tokens[0, LATE] = (tokens[0, LATE] + 1) % 32
    image[0] = 1 - image[0]
    return changed(Change(CASE, "values", 2, 1, 0.5, 0.25), Change(WHOLE_FILE, "weights"), tokens=tokens, image=image)


def test_both_images_stand_beside_each_regenerated():
    page = read_page(regeneration_page([regenerated()], "cpu"))
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


def test_golden_diff_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    html = tmp_path / "page.html"
    monkeypatch.setattr("harness.golden.regenerate_all", lambda *_: [changed(), regenerated()])
    assert command(monkeypatch, "golden", "diff", "--html", str(html)) == 1
    assert "2 changes" in capsys.readouterr().out
    assert "Images before and after" in read_page(html.read_bytes()).words
    content = (GOLDENS / NAME).read_bytes()
    assert command(monkeypatch, "golden", "diff", "--html", str(GOLDENS / NAME)) == 2
    assert "error: " in capsys.readouterr().err
    assert (GOLDENS / NAME).read_bytes() == content
