"""The rules that guard recordings: tampering is caught in its own words, and what cannot be judged is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import InputError
from harness.golden import _cases as cases
from harness.golden import _record as record
from harness.golden._cases import CPU
from harness.golden._check import read_recordings
from harness.golden._metadata import GoldenCase
from harness.golden._store import GENERATORS, content_digest, generator_probe, same_generator
from tests.helpers import command, recorded
from tests.regression.tampered import FILTERED, NAMES, PLAIN, SMOOTH, Content, one_line, other_token

COMPONENT = "golden"  # where nothing more exact is known
Tamper = Callable[[Content], object]


def plus(name: str, index: tuple[int, ...], by: float) -> Tamper:
    def tamper(content: Content) -> None:
        content.tensors[name][index] += by

    return tamper


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Tamper:
    def tamper(content: Content) -> None:
        content.tensors[name] = change(content.tensors[name]).contiguous()

    return tamper


def case_with(**values: object) -> Tamper:
    return lambda content: content.cases[0].update(values)


DEFECTS: dict[str, tuple[Tamper, str]] = {
    "token": (
        other_token,
        f"DEFECT in {PLAIN}: component token (the recorded token is not the draw on its own prefix) "
        "at seed 0, image 1, label 1, scale 3, position 17: token ",
    ),
    "f_hat": (plus(f"{PLAIN}/f_hat", (0, 3, 2, 1), 1e-2), f"DEFECT in {PLAIN}: component f_hat (f_hat is off by 0.01,"),
    "f_hat, smooth": (plus(f"{SMOOTH}/f_hat", (0, 3, 2, 1), 1e-2), "component f_hat (f_hat is off by 0.01,"),
    "logits": (plus(f"{PLAIN}/logits/2", (0, 3, 2), 1e-2), "component logits (logits/2 is off by 0.01,"),
    "image": (plus(f"{PLAIN}/image", (0, 2, 2, 1), 1e-3), "component image (image is off by 0.001,"),
    "missing": (lambda c: c.tensors.pop(f"{PLAIN}/f_hat"), "component form (tensor f_hat is missing)"),
    "extra": (
        lambda c: c.tensors.update({f"{PLAIN}/f_hat/0": torch.zeros(1)}),
        "component form (tensor f_hat/0 is not expected)",
    ),
    "stray": (
        lambda c: c.tensors.update({"nobody/tokens": torch.zeros(1)}),
        "tensor nobody/tokens is not expected: it belongs to no case",
    ),
    "dtype": (
        replaced(f"{PLAIN}/tokens", lambda t: t.int()),
        "component form (tokens has dtype torch.int32, expected torch.int16)",
    ),
    "dtype of f_hat": (
        replaced(f"{PLAIN}/f_hat", lambda t: t.double()),
        "component form (f_hat has dtype torch.float64, expected torch.float32)",
    ),
    "shape": (
        replaced(f"{PLAIN}/tokens", lambda t: t[:, :-1]),
        "component form (tokens has shape (2, 29), expected (2, 30))",
    ),
    "empty": (replaced(f"{PLAIN}/f_hat", lambda t: t[:0]), "component form (f_hat has shape (0, 8, 4, 4)"),
    "NaN": (plus(f"{PLAIN}/f_hat", (0, 0, 0, 0), float("nan")), "component form (f_hat holds NaN or infinity)"),
    "infinity": (plus(f"{PLAIN}/image", (0, 0, 0, 0), float("inf")), "component form (image holds NaN or infinity)"),
    "token outside": (plus(f"{PLAIN}/tokens", (0, 0), 99), "component form (tokens lie outside 0..31)"),
    "swapped": (
        lambda c: c.swap(FILTERED, SMOOTH),
        f"DEFECT in {FILTERED}: component swapped (case {SMOOTH} holds the tokens drawn here: two cases are swapped)",
    ),
    "seed": (case_with(seed=77), "component token (the recorded token is not the draw on its own prefix)"),
    "cfg": (case_with(cfg=1.6), "component logits (logits/1 is off by"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_tampering_is_a_defect_with_its_own_words(
    name: str, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tamper, words = DEFECTS[name]
    tamper(content)
    report = tmp_path / "report.json"
    path = content.save(tmp_path / "tampered.safetensors")
    assert command(monkeypatch, "golden", "check", str(path), "--json", str(report)) == 1
    out = capsys.readouterr().out
    assert words in out
    assert f"{len(NAMES)} of {len(NAMES)} cases" not in out or name == "stray"
    found = json.loads(report.read_text())
    assert found["verdict"] == "DEFECT"
    assert found["defects"] >= 1


def test_untouched_content_holds(content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert command(monkeypatch, "golden", "check", str(content.save(tmp_path / "copy.safetensors")), "--quiet") == 0


@pytest.mark.slow
def test_digits_cases_swapped_or_touched_late_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tensors, metadata = recorded("cpu")
    ids = ("test3-005", "test3-006", "test3-065")
    listed = [case for case in json.loads(metadata["cases"]) if case["id"] in ids]
    kept = {name: t.clone() for name, t in tensors.items() if name.split("/")[0] in ids}
    content = Content(kept, listed, {key: value for key, value in metadata.items() if key != "cases"})
    content.tensors["test3-065/f_hat"][0, 7, 9, 3] += 1e-2  # more_smooth: within its wide tolerance
    content.tensors["test3-005/f_hat/4"][1, 7, 9, 3] += 1e-2
    tokens = content.tensors["test3-006/tokens"]
    tokens[1, 679] = (tokens[1, 679] + 1) % 512
    assert command(monkeypatch, "golden", "check", str(content.save(tmp_path / "late.safetensors"))) == 1
    out = capsys.readouterr().out
    assert "DEFECT in test3-065: component image (image is not that of f_hat: off by" in out
    assert "DEFECT in test3-005: component f_hat (f_hat/4 is off by 0.01," in out
    assert "DEFECT in test3-006: component token" in out
    assert "position 679" in out
    assert out.splitlines()[-2].startswith("DEFECT 0 of 3 cases")


BAD: dict[str, tuple[Tamper, str]] = {
    "zero cases": (lambda c: c.cases.clear(), "holds zero cases: nothing could be compared"),
    "format version": (lambda c: c.metadata.update(format="2"), "format version must be 1, not 2"),
    "no format": (lambda c: c.metadata.pop("format"), "format version must be 1, not None"),
    "no id": (lambda c: c.cases[1].pop("id"), "every case must have an id"),
    "id": (case_with(id=3), "every case must have an id"),
    "no device": (lambda c: c.metadata.pop("device"), "metadata must name the device"),
    "networks": (lambda c: c.metadata.update(models="cats"), "models=cats: must be digits or filled"),
    "labels": (case_with(labels=[0, 6]), f"case {PLAIN}: labels=6: must lie in 0..5 (5 is unconditional)"),
    "no labels": (case_with(labels=[]), f"case {PLAIN}: labels=[]: must be a list of 1..65536"),
    "label type": (case_with(labels=["0"]), "labels=['0']: must be a list of 1..65536, each of type int"),
    "sampler": (case_with(sampler="magic"), f"case {PLAIN}: sampler=magic: must be one of sequential, test3"),
    "missing key": (lambda c: c.cases[0].pop("cfg"), f"case {PLAIN}=metadata: lacks 'cfg'"),
    "type": (case_with(seed=1.5), f"case {PLAIN}: seed=1.5: must be of type int"),
    "order": (case_with(order="rows"), f"case {PLAIN}: order=rows: must be one of image, batch; record it again"),
    "boolean": (case_with(more_smooth="no"), "more_smooth=no: must be of type bool"),
    "top_k": (case_with(top_k=33), "top_k=33: must lie in 0..V=32"),
    "phi": (case_with(phi="0 shared"), "phi=0 shared: must be of the form [1-9][0-9]? shared|one a scale"),
    "sizes": (case_with(D=-64), "D=-64: must be a whole number in 1..16384"),
    "twice": (lambda c: c.cases.append(c.cases[0]), f"case {PLAIN} is listed twice"),
    "sd_mask": (case_with(sampler="test3", entry_num=1, sd_mask=6), "sd_mask=6: must lie in 0..5"),
    "entry": (case_with(sampler="test3", entry_num=-1, sd_mask=0), "entry=-1: must be 0 or more"),
    "hand-off": (case_with(sampler="test3"), "lacks 'entry_num'"),
    "draft_len": (case_with(sampler="speculative", draft_len=9, bonus=False), "draft_len=9: must lie in 1..4"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_understood_is_bad_input(
    name: str, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tamper, words = BAD[name]
    tamper(content)
    path, report = content.save(tmp_path / "bad.safetensors"), tmp_path / "report.json"
    assert command(monkeypatch, "golden", "check", str(path), "--json", str(report)) == 2
    assert words in one_line(capsys)
    assert not report.exists()


def test_metadata_without_cases_is_bad_input(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "bad.safetensors"
    save_file(content.tensors, path, content.metadata)
    assert command(monkeypatch, "golden", "check", str(path)) == 2
    assert "metadata has no cases" in one_line(capsys)
    save_file(content.tensors, path, {**content.metadata, "cases": "[{]"})
    assert command(monkeypatch, "golden", "check", str(path)) == 2
    assert "metadata cases are not JSON" in one_line(capsys)


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_a_truncated_file_is_bad_input(
    left: int, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = content.save(tmp_path / "short.safetensors")
    path.write_bytes(path.read_bytes()[:left])
    assert command(monkeypatch, "golden", "check", str(path)) == 2
    said = one_line(capsys)
    assert {0: "is empty", 4: "do not tell"}.get(left, "is a safetensors file that is cut short: ") in said


def test_files_that_are_no_files_or_named_twice_are_bad_input(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = content.save(tmp_path / "good.safetensors")
    for files, words in (
        ([path, path], "is named twice"),
        ([path, tmp_path / ".." / tmp_path.name / "good.safetensors"], "is named twice"),
        ([tmp_path], "no such file"),
        ([path, tmp_path / "nowhere.safetensors"], "no such file"),
        ([Path(__file__)], "is a text that begins with"),
    ):
        assert command(monkeypatch, "golden", "check", *map(str, files)) == 2
        assert words in one_line(capsys)


def test_an_empty_list_of_files_is_bad_input():
    with pytest.raises(InputError, match="name nothing to check"):
        read_recordings([])


def test_rounds_of_a_speculative_case_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content):
    case = {**content.cases[0], "id": "turns", "sampler": "speculative", "draft_len": 2, "bonus": False}
    for tamper, status in (
        (lambda t: t, 0),
        (lambda t: t.long(), 1),
        (lambda t: t[:, :6], 1),
        (lambda t: t[1:], 1),
        (lambda t: t + torch.eye(len(t), 7, dtype=torch.int32), 1),
    ):
        tensors = dict(record.produce(cases.parse(GoldenCase.from_values(case), "filled", CPU)))
        tensors["turns/rounds"] = tamper(tensors["turns/rounds"].clone()).contiguous()
        path = Content(tensors, [case], content.metadata).save(tmp_path / "turns.safetensors")
        assert command(monkeypatch, "golden", "check", str(path), "--quiet") == status


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("device", "cuda", "recorded on cuda"),
        ("device", "mps", "recorded on mps"),
        ("dtype", "bfloat16", "recorded in bfloat16"),
        ("tf32", "on", "with TF32 on"),
    ],
)
def test_another_platform_or_precision_is_unverified(
    key: str, value: str, words: str, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    content.metadata[key] = value
    assert command(monkeypatch, "golden", "check", str(content.save(tmp_path / "far.safetensors"))) == 3
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith("UNVERIFIED ")
    assert words in out
    assert out.splitlines()[-2] == "INCONCLUSIVE 0 of 0 cases, 0 draws compared"


def test_a_defect_outweighs_an_unverified_file(content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content.metadata["device"] = "cuda"
    far = content.save(tmp_path / "far.safetensors")
    content.metadata["device"] = "cpu"
    other_token(content)
    assert command(monkeypatch, "golden", "check", str(far), str(content.save(tmp_path / "bad.safetensors"))) == 1


def test_another_generator_is_seen_before_anything_is_compared(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert same_generator(torch.device("cpu"))
    numbers = list(generator_probe(torch.device("cpu")))
    numbers[-1] *= 1.001
    monkeypatch.setitem(GENERATORS, "cpu", tuple(numbers))
    assert command(monkeypatch, "golden", "check", str(content.save(tmp_path / "far.safetensors"))) == 3
    assert "the generator of this cpu draws other numbers" in capsys.readouterr().out


def test_drawn_labels_and_other_settings_than_the_recorded_ones_are_understood(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = {**content.cases[0], "labels": None, "seed": 5, "cfg": 4.0, "top_k": 9, "top_p": 0.7}
    made = [
        {**base, "id": "drawn", "count": 3},
        {**base, "id": "handed", "count": 2, "sampler": "test3", "entry_num": 2, "sd_mask": 4},
        {**base, "id": "soft", "count": 2, "sampler": "test3", "entry_num": 9, "sd_mask": 0, "more_smooth": True},
    ]
    tensors = dict(
        pair for case in made for pair in record.produce(cases.parse(GoldenCase.from_values(case), "filled", CPU))
    )
    for case in made:
        del case["count"]  # as published: the tensors tell how many
    content.tensors |= tensors
    content.cases += made
    assert command(monkeypatch, "golden", "check", str(content.save(tmp_path / "drawn.safetensors"))) == 0
    tokens = content.tensors["drawn/tokens"] = tensors["drawn/tokens"].clone()
    tokens[2, 3] = (tokens[2, 3] + 1) % 32
    assert command(monkeypatch, "golden", "check", str(content.save(tmp_path / "drawn.safetensors"))) == 1


def test_the_digest_depends_on_content_and_not_on_order():
    a, b = torch.arange(4.0), torch.zeros(2, dtype=torch.int16)
    digest = content_digest({"a": a, "b": b})
    assert digest == content_digest({"b": b.clone(), "a": a.clone()})
    others: list[dict[str, Tensor]] = [{"a": a}, {"a": a, "c": b}, {"a": a.double(), "b": b}, {"a": a[:, None], "b": b}]
    assert all(digest != content_digest(other) for other in [*others, {"a": a + 1e-7, "b": b}])


def test_a_pattern_judges_the_cases_that_fit(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    other_token(content)
    path = content.save(tmp_path / "one.safetensors")
    assert command(monkeypatch, "golden", "check", str(path), "--only", "no-l2norm-?") == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("IDENTICAL 2 of 2 cases, ")
    assert command(monkeypatch, "golden", "check", str(path), "--only", PLAIN, "--quiet") == 1
