"""This project's own goldens: they hold, they are what the plan says, and they cover what they should."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from harness.golden import _plan as plan
from harness.golden._store import read_recording
from tests.bent_smooth import with_tau
from tests.helpers import bend, command
from tests.regression.conftest import golden_properties

COMPONENT = "golden"  # where nothing more exact is known

PATHS = sorted(plan.GOLDENS.glob("*.safetensors"))


def file_digests() -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in plan.GOLDENS.iterdir()}


def test_they_hold_and_checking_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_properties: dict[str, str]
):
    before, report = file_digests(), tmp_path / "report.json"
    status = command(monkeypatch, "golden", "check", "--json", str(report))
    own_properties.update(golden_properties(json.loads(report.read_text())))
    assert status == 0
    said = capsys.readouterr().out.splitlines()
    planned = sum(len(plan.cases(models)) for models in plan.FILES)
    assert said[0].startswith(f"{planned} cases of this project's own goldens on cpu, ")
    assert re.match(rf"(IDENTICAL|TIE) {planned} of {planned} cases, ", said[-3])
    found = json.loads(report.read_text())
    assert (found["verdict"] in ("IDENTICAL", "TIE"), found["cases"], found["defects"]) == (True, planned, 0)
    assert file_digests() == before


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_they_are_as_planned_and_keep_their_provenance(path: Path):
    recording = read_recording(path)
    assert plan.stale_entries(recording) == []
    assert recording.metadata.keys() >= {"versions", "device", "device_name", "weights", "digest", "commit", "reason"}
    assert recording.metadata["reason"]


def test_together_they_are_small_enough_for_git():
    assert sum(path.stat().st_size for path in plan.GOLDENS.iterdir()) < 10_000_000


def test_the_plan_covers_samplers_modes_masks_entries_and_layouts():
    of_var = plan.files_of("cuda")
    cases = [case for models in of_var for case in plan.cases(models)]
    assert {case.sampler for case in cases} == {"sequential", "test3", "speculative"}
    for models in of_var:
        handed = [case for case in plan.cases(models) if case.sampler == "test3"]
        assert {(c.mode, c.sd_mask) for c in handed} == {("recorded", m) for m in range(6)} | {
            ("corrected", m) for m in range(1, 6)
        }
        assert any(case.sampler == "speculative" for case in plan.cases(models))
    tiny = plan.cases("filled")
    assert {case.recipe.shared_adaln for case in tiny} == {case.recipe.l2_norm for case in tiny} == {True, False}
    assert {case.recipe.phi for case in tiny} == {"1 shared", "4 shared", "one a scale"}
    assert len({tuple(case.recipe.patch_nums) for case in tiny}) == 4
    of_infinity = [case.values for case in plan.cases("infinity")]
    assert {values["network"] for values in of_infinity} == set(plan.INFINITY)
    assert {values["sampler"] for values in of_infinity} == {"sequential", "teacher"}
    for network in plan.NETWORKS:
        entries = {c.entry_num for c in tiny if c.id.startswith(f"{network}-handoff")}
        assert entries == set(range(len(plan.NETWORKS[network].patch_nums)))


@pytest.mark.slow
def test_a_changed_constant_of_more_smooth_changes_its_five_cases_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, "golden", "diff") == 0
    assert capsys.readouterr().out.strip() == "nothing would change"
    warmer = with_tau(lambda ramp: max(0.28 * (1 - 0.95 * ramp), 0.005))
    bend(monkeypatch, "smooth_codes", warmer)
    assert command(monkeypatch, "golden", "diff") == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    changed = {words[0] for words in lines if words[1:2] == ["values"]}
    assert changed == {"smooth", *(f"{network}-smooth" for network in plan.NETWORKS)}
    assert lines[-1] == ["5", "changes"]
