"""Files of recorded tensors: what is no recording is refused in a line of its own."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from harness.content import MOST_REASON
from harness.errors import InputError
from harness.golden import _plan as plan
from harness.golden import _store as store
from harness.golden._metadata import GoldenCase
from harness.golden._store import Recording, as_bytes, canonical, content_digest, read_recording

A, B = (GoldenCase(name, "sequential", (0,), plan.PLAIN) for name in "ab")
GOOD = {"format": "1", "device": "cpu", "cases": canonical([A])}
AGAIN = "record it again"
SAMPLERS = "pass a recording of samplers (encoder and published-sizes recordings are not judged here)"


def refusal(path: Path) -> str:
    """Return what is said of a path; that it is named first is checked here."""
    with pytest.raises(InputError) as caught:
        read_recording(path)
    start = f"golden={path}: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "2"}, "format version must be 1, not 2; use the harness version that wrote it"),
        ({"format": None}, "format version must be 1, not None; use the harness version that wrote it"),
        ({"device": None}, f"metadata must name the device; {AGAIN}"),
        ({"device": ""}, f"metadata must name the device; {AGAIN}"),
        ({"cases": None}, f"metadata has no cases; {SAMPLERS}"),
        ({"cases": "[{]"}, f"metadata cases are not JSON; {AGAIN}"),
        ({"cases": "[" * 10**6}, f"metadata cases are not JSON; {AGAIN}"),
        ({"cases": '{"id": "a"}'}, f"metadata cases must be a list of objects; {AGAIN}"),
        ({"cases": '[{"id": "a"}, 3]'}, f"metadata cases must be a list of objects; {AGAIN}"),
        ({"cases": "{}"}, f"metadata cases must be a list of objects; {AGAIN}"),
        ({"cases": "[]"}, f"holds zero cases: nothing could be compared; {SAMPLERS}"),
        ({"cases": '[{"id": "a"}, {}]'}, f"every case must have an id; {AGAIN}"),
        ({"cases": '[{"id": ""}]'}, f"every case must have an id; {AGAIN}"),
        ({"cases": '[{"id": 3}]'}, f"every case must have an id; {AGAIN}"),
    ],
)
def test_metadata_of_no_recording_is_refused(change: dict[str, str | None], said: str, tmp_path: Path):
    path = tmp_path / "file"
    tensors = {"a/tokens": torch.zeros(2)}
    path.write_bytes(save(tensors, GOOD))
    assert read_recording(path).cases == (A,)
    path.write_bytes(save(tensors, {key: value for key, value in {**GOOD, **change}.items() if value is not None}))
    assert refusal(path) == said


def test_what_is_no_file_or_larger_than_any_recording_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    absent = "record it, or restore it from version control"
    assert refusal(tmp_path / "nowhere") == f"no such file; {absent}"
    assert refusal(tmp_path) == f"no such file (there is a folder); {absent}"
    path = tmp_path / "large"
    path.write_bytes(save({"a/tokens": torch.zeros(2)}, GOOD))
    size = path.stat().st_size
    monkeypatch.setattr(store, "MOST_BYTES", size)
    assert read_recording(path).platform == "cpu"
    monkeypatch.setattr(store, "MOST_BYTES", size - 1)
    assert refusal(path) == f"has {size} bytes, more than the {size - 1} of any recording; {SAMPLERS}"


def test_a_damaged_file_is_refused_in_few_words_whatever_its_names_are(tmp_path: Path):
    remedy = "copy or download it again"
    path = tmp_path / "damaged"
    path.write_bytes(save({"a/tokens": torch.zeros(2)}, GOOD)[:-1])
    said = refusal(path)
    assert re.fullmatch(r"is a safetensors file that is cut short: (\d+) of (\d+) bytes; " + remedy, said)
    header = json.dumps({"n" * 10**5: {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"12345")
    reason = refusal(path).removeprefix("is a damaged safetensors file (").removesuffix(f"); {remedy}")
    assert len(reason) == MOST_REASON
    assert "nnn" in reason


def test_a_file_is_read_as_it_was_written(tmp_path: Path):
    path, tensors = tmp_path / "file", {"b/x": torch.arange(6).view(2, 3).T, "a/x": torch.tensor([True])}
    cases = (replace(B, labels=(1, 2)), A)
    path.write_bytes(as_bytes({"device": "cpu", "reason": "ä"}, cases, tensors))
    found = read_recording(path)
    assert (found.path, found.cases) == (path, cases)
    assert found.metadata == {"format": "1", "device": "cpu", "reason": "ä"}
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


def test_a_case_has_one_text_of_what_it_states_in_the_order_of_its_keys():
    text = '[{"cfg":1.5,"count":2,"id":"a","labels":null,"more_smooth":false,"sampler":"sequential","seed":100,'
    assert canonical([replace(A, labels=None, count=2)]) == text + '"top_k":0,"top_p":0.0}]'


def test_a_case_that_cannot_be_understood_is_named(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(save({}, {**GOOD, "cases": canonical([A, replace(B, labels=(0.5,))])}))
    with pytest.raises(InputError, match=r"^case b: labels=\[0.5\]: must be a list of 1..65536, each of type int"):
        read_recording(path)


@pytest.mark.parametrize("platform", plan.PLATFORMS)
def test_the_committed_goldens_have_the_digest_that_they_state(platform: str):
    """What a digest is made of may never change unnoticed: every recording there is would be one changed by hand."""
    for models in plan.files_of(platform):
        recording = read_recording(plan.path_of(models, platform))
        assert recording.own
        assert recording.digest() == recording.metadata["digest"]


def test_a_digest_tells_names_dtypes_shapes_and_settings_apart_where_bytes_are_the_same():
    zeros = torch.zeros(2, 2, dtype=torch.int32)
    sets: list[dict[str, Tensor]] = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(torch.float32)}, {"a": zeros.view(4)}]
    digests = {content_digest(tensors) for tensors in sets}
    digests |= {content_digest({"a": zeros}, "with a text")}
    assert len(digests) == 5
    assert content_digest({"a": zeros}, "") in digests  # no text is the empty one
    path, tensors = Path("of-no-file"), {"one/tokens": zeros}
    one, other_reason, other_cfg = (
        Recording(path, {"reason": reason}, (replace(A, drawing=replace(plan.PLAIN, cfg=cfg)),), tensors).digest()
        for reason, cfg in (("first", 1.0), ("second", 1.0), ("first", 2.0))
    )
    assert one == other_reason
    assert one != other_cfg
