"""The page of `golden check`: the verdict, what is wrong and where, images of the cases that do not hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.golden.check import check_recording, recorded_cases
from harness.golden.plan import GOLDENS
from harness.golden.store import Recording, as_bytes, read_recording
from harness.report.html.recordings import MOST_IMAGES, recordings_page
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


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
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
