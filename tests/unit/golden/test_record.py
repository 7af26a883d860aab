"""Recording: on whose device, of which checkout, what is asked before anything is made, and what is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.errors import InputError
from harness.golden import _cases as cases
from harness.golden import _plan as plan
from harness.golden import _record as record
from harness.golden._cases import CPU, CaseResult
from harness.golden._metadata import GoldenCase
from harness.golden._plan import path_of, weights_digest
from harness.golden._record import change, kind_of_change
from harness.golden._store import FORMAT, Recording, as_bytes, canonical, content_digest, read_recording, unverified
from harness.judge._verdict import Divergence
from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.provenance import device_name, versions

IDS = ("no-l2norm-plain", "one-phi-plain", "one-phi-speculative-2")
OTHER, PLAIN, SPECULATIVE = IDS
PLANNED = tuple(case for case in plan.cases("filled") if case.id in IDS)
NAME = "golden-tiny-cpu.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for goldens of three cases, in a checkout that is clean; whatever runs, runs on the device asked for."""

    def git(code: Path, *words: str) -> str:
        assert code == tmp_path
        return "" if words[0] == "status" else "abc"

    def contradicted(device: torch.device) -> list[str]:
        assert device is CPU
        return []

    whole = cases.recorded_networks

    def networks(case: GoldenCase, models: str, device: torch.device | None = None) -> ModelPair:
        assert device is CPU
        return whole(case, models, device)

    monkeypatch.setattr(plan, "FILES", {"filled": "golden-tiny"})
    monkeypatch.setattr(plan, "cases", lambda models: {"filled": PLANNED}[models])
    monkeypatch.setattr(record, "git_says", git)
    monkeypatch.setattr(record, "contradicted", contradicted)
    monkeypatch.setattr(cases, "recorded_networks", networks)
    monkeypatch.delenv("CI", raising=False)
    made = tmp_path / "goldens"
    made.mkdir()
    return made


def holds(models: ModelPair) -> list[str]:
    return []


def recorded(folder: Path, reason: str = "because", only: str = "*") -> Recording:
    """Record; return what lies there."""
    for made in record.changed_goldens(reason, CPU, folder, folder.parent, holds, only):
        record.write_golden(made, reason, CPU, folder.parent)
    return read_recording(folder / NAME)


def rewritten(path: Path, **metadata: str) -> None:
    """Write a file's metadata anew, its cases and tensors as they were."""
    before = read_recording(path)
    path.write_bytes(as_bytes({**before.metadata, **metadata}, before.cases, before.tensors))


def test_a_golden_says_all_of_where_it_comes_from(folder: Path):
    there = recorded(folder, "  the first ")
    whence = {"commit": "abc", "device_name": device_name(CPU), "reason": "the first"}
    assert dict(there.metadata) == {
        **whence, "format": FORMAT, "kind": "golden", "models": "filled", "device": "cpu", "dtype": "float32",
        "tf32": "off", "versions": json.dumps(versions(), sort_keys=True), "weights": weights_digest("filled"),
        "digest": content_digest(there.tensors, canonical(there.cases)),
        "origins": json.dumps([{**whence, "versions": versions(), "cases": list(IDS)}], sort_keys=True),
    }  # fmt: skip
    assert unverified(there, CPU) == ""


def test_a_file_that_only_loses_cases_names_no_new_origin(folder: Path, monkeypatch: pytest.MonkeyPatch):
    recorded(folder, "the first")
    monkeypatch.setattr(plan, "cases", lambda models: PLANNED[1:])
    (origin,) = json.loads(recorded(folder, "one network less").metadata["origins"])
    assert (origin["reason"], origin["cases"]) == ("the first", [PLAIN, SPECULATIVE])


def test_a_pattern_records_the_cases_that_fit_and_no_other(folder: Path):
    assert [case.id for case in recorded(folder, only="one-phi-p*").cases] == [PLAIN]
    assert [case.id for case in recorded(folder, "the rest").cases] == list(IDS)
    assert record.changed_goldens("again", CPU, folder, folder.parent, holds) == []


def test_a_golden_changed_by_hand_is_made_anew_as_a_whole_or_not_at_all(folder: Path):
    recorded(folder)
    rewritten(folder / NAME, digest="0")
    assert [(change.id, change.what) for change in record.regenerate("filled", CPU, folder).changes] == [
        *((name, "values") for name in IDS),
        ("(file)", "changed by hand"),
    ]
    with pytest.raises(InputError) as found:
        record.regenerate("filled", CPU, folder, "one-*")
    rule = "was changed by hand: none of its cases can be kept"
    assert str(found.value) == f"golden={folder / NAME}: {rule}; restore it from version control, or leave out --only"


def test_a_golden_of_another_precision_is_not_overwritten(folder: Path):
    recorded(folder)
    rewritten(folder / NAME, tf32="on")
    with pytest.raises(InputError) as found:
        record.regenerate("filled", CPU, folder)
    rule = "recorded in float32 with TF32 on; float32 with TF32 off is what runs here"
    assert str(found.value) == f"golden={folder / NAME}: {rule}; compare it on the platform that it was recorded on"


def test_laws_are_tried_on_every_pair_of_networks_once(folder: Path):
    tried: list[ModelPair] = []
    assert (
        len(record.changed_goldens("because", CPU, folder, folder.parent, lambda models: tried.append(models) or []))
        == 1
    )
    assert sorted(pair.pyramid.patch_nums for pair in tried) == [(1, 2, 4, 6), (1, 3, 5)]


def refusal(folder: Path, device: torch.device = CPU, laws: record.Laws = holds) -> str:
    """Return what recording is refused with; nothing was made before or is left behind."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(InputError) as found:
        record.changed_goldens("because", device, folder, folder.parent, laws)
    assert sorted(folder.parent.rglob("*")) == before
    return str(found.value)


def test_what_recording_is_refused_for_reads_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert refusal(folder, torch.device("mps")) == (
        "device=mps: must be a platform of the plan (cpu, cuda); add it to golden/plan.py"
    )
    nowhere = folder.parent / "nowhere"
    assert refusal(nowhere) == f"folder={nowhere}: is not there; make it first"
    assert refusal(folder, laws=lambda models: ["a = b", "c = d"][: models.pyramid.S - 2]) == (
        "laws=a = b; a = b; c = d: must hold before a golden is recorded; mend the code first"
    )
    monkeypatch.setattr(record, "contradicted", lambda device: ["a (case 1)", "b (case 2)"])
    assert refusal(folder) == (
        "recordings=a (case 1); b (case 2): are contradicted: outside truth outranks any golden; "
        "mend the code first (golden check FILE)"
    )
    path_of("filled", "cpu", folder).mkdir()  # met before any work
    assert refusal(folder) == (
        f"folder={folder / NAME}: is a folder, not a file; pass --folder FILE in a folder that you can write to"
    )


# ---- what has become of a case ----

CHANGING = next(case for case in plan.cases("filled") if case.id == "phi-per-scale-plain")
FIRST_OF_SCALE_2 = sum(pn * pn for pn in CHANGING.recipe.patch_nums[:2])


def on_disk(*cases: GoldenCase) -> Recording:
    return Recording(Path("of-no-file"), {}, cases, {})


def result_of(*components: str) -> CaseResult:
    judged = CaseResult(CHANGING.id, Request((0,), 0))
    for component in components:
        judged.defect(component, "by hand")
    return judged


@pytest.mark.parametrize(
    ("components", "kind"),
    [((), ""), (("token",), "values"), (("form",), "form"), (("image", "f_hat"), "values")],
)
def test_one_defect_is_a_change_of_values_or_of_form(components: tuple[str, ...], kind: str):
    assert kind_of_change(CHANGING, on_disk(CHANGING), result_of(*components)) == kind


def test_a_tie_is_no_change():
    tied = result_of()
    tied.ties.append(Divergence("tie", "by hand", 0))
    assert kind_of_change(CHANGING, on_disk(CHANGING), tied) == ""


def test_a_case_that_is_not_there_is_added_and_one_of_other_settings_is_not_judged():
    other = replace(CHANGING, id="another")
    assert kind_of_change(CHANGING, on_disk(other), None) == "added"
    assert (
        kind_of_change(CHANGING, on_disk(other, replace(CHANGING, drawing=replace(plan.PLAIN, cfg=2.5))), None)
        == "settings"
    )


def test_a_change_tells_the_first_scale_and_each_difference():
    old = {"tokens": torch.zeros(2, FIRST_OF_SCALE_2 + 9), "f_hat": torch.zeros(2, 3), "image": torch.zeros(4)}
    new = {name: tensor.clone() for name, tensor in old.items()}
    same = change(CHANGING, "filled", "values", new, old)
    assert (same.first_scale, same.tokens, same.f_hat, same.image) == (-1, 0, 0, 0)
    new["tokens"][0, -1] = new["tokens"][1, FIRST_OF_SCALE_2 - 1] = 1
    new["f_hat"][1, 2], new["image"][0] = -0.5, 0.25
    found = change(CHANGING, "filled", "values", new, old)
    assert (found.what, found.first_scale, found.tokens, found.f_hat, found.image) == ("values", 1, 2, 0.5, 0.25)
    for what, other in (
        ("added", old),
        ("form", {**old, "image": torch.zeros(5)}),
        ("form", {"tokens": old["tokens"]}),
    ):
        found = change(CHANGING, "filled", what, new, other)
        assert (found.what, found.first_scale, found.tokens) == (what, -1, 0)
        assert math.isnan(found.f_hat)
        assert math.isnan(found.image)
