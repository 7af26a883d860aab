"""Recordings of Infinity: this project's golden holds, each kind of tampering is caught, and so is each planted bug.

The published sampler's recordings are kept outside; where they lie beside the others, or where `RECORDED_INFINITY`
says, all of them are judged, too, under every instruction set that PyTorch knows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.golden import _infinity as golden
from harness.golden import _plan as plan
from harness.models.infinity import transformer
from harness.reference import _steps
from tests.helpers import RECORDED, command
from tests.regression.tampered import one_line

COMPONENT = "reference"  # where nothing more exact is known
GOLDEN = plan.path_of("infinity", "cpu")
OUTSIDE = Path(os.environ.get("RECORDED_INFINITY", RECORDED / "recorded-infinity-cpu.safetensors"))


@dataclass
class Content:
    """A recording that can be tampered with."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def case(self, name: str) -> dict[str, Any]:
        return next(case for case in json.loads(self.metadata["cases"]) if case["id"] == name)

    def state(self, name: str, **values: object) -> None:
        listed = json.loads(self.metadata["cases"])
        self.metadata["cases"] = json.dumps([case | values if case["id"] == name else case for case in listed])

    def save(self, path: Path) -> str:
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path, self.metadata)
        return str(path)


@pytest.fixture
def content() -> Content:
    with safe_open(GOLDEN, "pt") as file:
        return Content({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118


def judged(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    report = tmp_path / "report.json"
    report.unlink(missing_ok=True)
    status = command(monkeypatch, "golden", "check", path, "--quiet", "--json", str(report), *more)
    return {"status": status, **json.loads(report.read_text())}


def test_the_golden_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = judged(str(GOLDEN), tmp_path, monkeypatch, "--html", str(tmp_path / "page.html"))
    assert (found["status"], found["cases"], found["draws"], found["defects"]) == (0, 9, 2052, 0)
    assert found["identical"] + found["ties"] == found["draws"]
    assert GOLDEN.stat().st_size < 100_000


NAMES = (
    "plain/text", "plain/bits", "plain/logits", "plain/f_hat/1", "plain/f_hat", "plain/noise_ends", "forced/forced/0",
    "plain/decoded_unclamped", "plain/image_bgr_u8", "negative/text_negative", "teacher/raw", "teacher/bits",
    "teacher/inputs", "teacher/logits", "rounds/logits", "rounds/bits",
)  # fmt: skip


def other_value(tensor: Tensor) -> Tensor:
    bent = tensor.clone()
    bent.view(-1)[-1] = 1 - bent.view(-1)[-1] if tensor.dtype == torch.uint8 else bent.view(-1)[-1] + 0.5
    return bent


def not_a_number(tensor: Tensor) -> Tensor:
    bent = tensor.clone()
    bent.view(-1)[0] = 7 if tensor.dtype == torch.uint8 else float("nan")
    return bent


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "value": other_value,
    "NaN": not_a_number,
    "dtype": lambda tensor: tensor.to(torch.int16 if tensor.dtype == torch.uint8 else torch.float64),
    "shape": lambda tensor: tensor[None],
    "empty": lambda tensor: tensor[:0],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_tensor_is_a_defect_of_its_case(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content
):
    content.tensors[name] = KINDS[kind](content.tensors[name])
    case = name.split("/", maxsplit=1)[0]
    found = judged(content.save(tmp_path / "bent.safetensors"), tmp_path, monkeypatch, "--only", case)
    assert (found["status"], found["verdict"]) == (1, "DEFECT")
    if kind not in ("value", "NaN") or (content.tensors[name].is_floating_point() and kind == "NaN"):
        assert found["files"][0]["cases"][0]["defects_listed"][0]["component"] == "form"


@pytest.mark.parametrize(
    ("name", "moved"),
    [("plain/logits", 3.2e-5), ("rounds/logits", 3.2e-2), ("plain/f_hat", 3.2e-6), ("teacher/inputs", 3.2e-6),
     ("plain/decoded_unclamped", 1.6e-5), ("plain/noise_ends", 1.6e-5)],
)  # fmt: skip
def test_what_is_allowed_is_no_more_than_the_page_says(
    name: str, moved: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content
):
    flat, (case, _, tensor) = content.tensors[name].clone().flatten(), name.partition("/")
    flat[-1] += moved * (float(flat[-1]) if tensor == "noise_ends" else 1.0)
    content.tensors[name] = flat.view_as(content.tensors[name])
    found = judged(content.save(tmp_path / "bent.safetensors"), tmp_path, monkeypatch, "--only", case)
    said = {each["component"] for each in found["files"][0]["cases"][0]["defects_listed"]}
    assert ({"decoded_unclamped": "image", "noise_ends": "noise"}.get(tensor, tensor)) in said


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor_and_an_extra_one_are_defects(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content
):
    tensor, case = content.tensors.pop(name), name.split("/", maxsplit=1)[0]
    content.tensors[f"{case}/extra"] = tensor
    found = judged(content.save(tmp_path / "bent.safetensors"), tmp_path, monkeypatch, "--only", case)
    said = [defect["detail"] for defect in found["files"][0]["cases"][0]["defects_listed"]]
    assert said == [f"tensor {name.removeprefix(f'{case}/')} is missing", "tensor extra is not expected"]
    assert found["status"] == 1


def test_cases_that_are_swapped_and_tensors_of_no_case_are_defects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content
):
    own = {name: t for name, t in content.tensors.items() if name.startswith("unfused/")}
    for name, tensor in own.items():
        content.tensors[name], other = content.tensors[name.replace("unfused", "rounds")], tensor
        content.tensors[name.replace("unfused", "rounds")] = other
    content.tensors["nobody/bits"] = torch.zeros(1, dtype=torch.uint8)
    found = judged(content.save(tmp_path / "bent.safetensors"), tmp_path, monkeypatch)
    wrong = {case["id"] for case in found["files"][0]["cases"] if case["defects"]}
    assert wrong == {"unfused", "rounds"}
    stray, name, digest = found["files"][0]["defects"]
    assert stray == "tensor nobody/bits is not expected: it belongs to no case"
    assert name.startswith("file name must be golden-infinity-cpu.safetensors")
    assert digest == "content digest differs: the file was changed by hand"


@pytest.mark.parametrize(
    ("case", "values", "said"),
    [
        ("plain", {"schedule": [[2, 1], [3, 4]]}, "must be positive, and the first scale one position"),
        ("plain", {"schedule": [[1, 1], [3]]}, "must list pairs (h, w)"),
        ("plain", {"schedule": [[1, 1], [200, 3]]}, "schedule=[[1, 1], [200, 3]]"),
        ("plain", {"schedule": "square"}, "schedule=square"),
        ("plain", {"cfg": [2.0]}, "weights=(2.0,): must hold one entry a scale (4)"),
        (
            "plain",
            {"cfg_insertion_layer": [-3]},
            "places=(-3,): must be 0, 1 or -1..-2, after a block",
        ),
        ("plain", {"text_lens": [7]}, "must be one text an image, of at most 6 rows"),
        ("negative", {"negative_lens": [4]}, "negative_texts=1: must be one a text (2)"),
        ("plain", {"network": "none"}, "metadata: lacks 'none'"),
        ("plain", {"seed": -1}, "seed=-1"),
        ("plain", {"sampler": "test3"}, "sampler=test3"),
        ("plain", {"tau": [1, 0, 1, 1]}, "temperatures=(1, 0, 1, 1): must be positive"),
        ("forced", {"gt_leak": 9}, "forced scales that there are"),
        ("plain", {"top_p": float("inf")}, "top_p="),
    ],
)
def test_metadata_that_fits_no_network_is_refused_in_one_line(
    case: str, values: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    content.state(case, **values)
    assert command(monkeypatch, "golden", "check", content.save(tmp_path / "bent.safetensors")) == 2
    line = one_line(capsys)
    assert said in line
    assert f"case {case}" in line


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"networks": "[]"}, "networks=[]: must be JSON that describes each network"),
        ({"networks": "{"}, "must be JSON that describes each network"),
        ({"cases": "[]"}, "holds zero cases"),
        ({"format": "infinity-recorded-2"}, "format version must be 1"),
    ],
)
def test_a_file_without_cases_or_networks_is_refused(
    metadata: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    content.metadata |= metadata
    assert command(monkeypatch, "golden", "check", content.save(tmp_path / "bent.safetensors")) == 2
    assert said in one_line(capsys)


@pytest.mark.parametrize(("key", "value"), [("parameters", 5), ("D", 33), ("rms_norm", True), ("vae_ch", 24)])
def test_a_network_of_other_sizes_is_refused(
    key: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    networks = json.loads(content.metadata["networks"])
    content.metadata["networks"] = json.dumps(networks | {"plain": networks["plain"] | {key: value}})
    assert command(monkeypatch, "golden", "check", content.save(tmp_path / "bent.safetensors")) == 2
    assert f"{key}={value}" in one_line(capsys)


def columns_first(network: Any, first: int, last: int) -> Tensor:
    return INFINITY.positions(network, first, last)[:, [0, 2, 1]]


def area(f_hat: Tensor, si: int, pyramid: Any) -> Tensor:
    (h, w), patch = pyramid.sides[si], f_hat.shape[3] // pyramid.sides[-1][1]
    resized = torch.nn.functional.interpolate(f_hat, (patch * h, patch * w), mode="area")
    return golden.autoencoder.from_map(resized, patch).unflatten(1, (h * w, -1))


def always_guided(rows: Tensor, guidance: Any, si: int, S: int) -> Tensor:
    return INFINITY.guide(rows, replace(guidance, places=(0,)), si, S)


INFINITY = _steps.FAMILIES["infinity"]
BUGS = {
    "columns first": {"positions": columns_first},
    "area": {"next_input": area},
    "place": {"guide": always_guided},
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_of_the_steps_is_caught(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(_steps.FAMILIES, "infinity", replace(INFINITY, **BUGS[bug]))
    assert judged(str(GOLDEN), tmp_path, monkeypatch)["status"] == 1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rotated", lambda x, turn: x),
        ("guided_between", lambda x, guidance, level_n: x),
        ("EPS", 1e-3),
        ("BASE", 1000.0),
    ],
)
def test_a_planted_bug_of_the_network_is_caught(name: str, wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformer, name, wrong)
    assert judged(str(GOLDEN), tmp_path, monkeypatch)["status"] == 1


@pytest.mark.slow
@pytest.mark.skipif(not OUTSIDE.is_file(), reason="the published sampler's recordings are kept outside")
@pytest.mark.parametrize("capability", ["default", "avx2", ""])
def test_the_published_recordings_hold_under_every_instruction_set(capability: str, tmp_path: Path):
    report, own = tmp_path / "report.json", {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    words = [sys.executable, "-P", "-m", "harness", "golden", "check", str(OUTSIDE), "--json", str(report), "--quiet"]
    assert subprocess.run(words, env=os.environ | own, check=False).returncode == 0
    found = json.loads(report.read_text())
    assert (found["cases"], found["draws"], found["defects"]) == (52, 89_146, 0)
    # of the network of ordinary width one race is so close that steps of bfloat16 decide it
    assert found["identical"] >= found["draws"] - 1
