"""Files that are named to be judged, and their cases: all understood, or one line that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden import plan
from harness.golden.cases import CPU
from harness.golden.check import parse_all, read_all
from harness.golden.store import Recording, as_bytes


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as found:
        read()
    return str(found.value)


def test_files_to_judge_are_named_and_named_once(tmp_path: Path):
    assert refused(lambda: read_all([])) == "files=[]: name nothing to check; pass at least one recording"
    path = tmp_path / "a.safetensors"
    path.write_bytes(as_bytes({"device": "cpu"}, ({"id": "a"},), {}))
    again = tmp_path / ".." / tmp_path.name / path.name
    assert refused(lambda: read_all([path, again])) == f"files={again}: is named twice; name every file once"
    assert [recording.path for recording in read_all([path])] == [path]


TEXT = next(case for case in plan.cases("filled") if case["id"] == "one-phi-plain")


def recording_of(*texts: dict[str, Any], models: str = "filled", **tensors: Tensor) -> Recording:
    words = {"models": models} if models else {}
    return Recording(Path("of-no-file"), words, texts, {name.replace("__", "/"): t for name, t in tensors.items()})


def test_cases_are_understood_in_their_order_on_the_device_that_is_asked_for():
    parsed = parse_all(recording_of({**TEXT, "id": "b"}, {**TEXT, "id": "a"}), torch.device("meta"))
    assert [(case.id, case.models.device.type) for case in parsed] == [("b", "meta"), ("a", "meta")]


@pytest.mark.parametrize(
    ("tensors", "images"),
    [
        ({"a__tokens": torch.zeros(3, 5)}, 3),
        ({}, 1),
        ({"a__tokens": torch.tensor(7)}, 1),
        ({"b__tokens": torch.zeros(3, 5)}, 1),
    ],
)
def test_tokens_tell_how_many_images_have_drawn_labels_where_there_are_any(tensors: dict[str, Tensor], images: int):
    (case,) = parse_all(recording_of({**TEXT, "id": "a", "labels": None}, **tensors), CPU)
    assert case.request.labels is None
    assert images == case.request.B


def test_a_case_that_is_listed_twice_and_networks_that_nobody_knows_are_refused():
    twice = recording_of({**TEXT, "id": "a"}, {**TEXT, "id": "b"}, {**TEXT, "id": "a"})
    said = "golden=of-no-file: case a is listed twice; record it again"
    assert refused(lambda: parse_all(twice, CPU)) == said
    unknown = recording_of({**TEXT, "id": "a"}, models="")
    said = "case a: models=: must be digits or filled; pass a recording of known networks"
    assert refused(lambda: parse_all(unknown, CPU)) == said
