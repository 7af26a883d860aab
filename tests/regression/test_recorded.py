"""The recordings of the published samplers: every case, every tensor, through the command that users run."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from harness.golden import _cases as cases
from harness.models._pair import ModelPair
from tests.helpers import RECORDED, command
from tests.regression.conftest import golden_properties

COMPONENT = "reference"  # where nothing more exact is known


def checked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_properties: dict[str, str]) -> dict:
    report = tmp_path / "report.json"
    path = RECORDED / f"{name}.safetensors"
    status = command(monkeypatch, "golden", "check", str(path), "--json", str(report))
    found = json.loads(report.read_text())
    own_properties.update(golden_properties(found, os.path.relpath(path)))
    return {"status": status, **found}


def test_all_76_cases_of_the_published_samplers_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_properties: dict[str, str]
):
    begin = time.process_time()
    found = checked("recorded-cpu", tmp_path, monkeypatch, own_properties)
    assert time.process_time() - begin < 2 * 60  # a minute on two cores, whatever else they do
    assert (
        capsys.readouterr()
        .out.splitlines()[-3]
        .startswith(("IDENTICAL 76 of 76 cases, 103", "TIE 76 of 76 cases, 103"))
    )
    assert (found["status"], found["cases"], found["draws"], found["defects"]) == (0, 76, 103_360, 0)
    assert found["identical"] >= 0.9999 * (found["draws"] - found["not_judged"])
    assert found["identical"] + found["ties"] + found["not_judged"] == found["draws"]
    judged = found["files"][0]["cases"]
    smooth = [case for case in judged if case["map_positions"]]
    assert {case["id"] for case in judged if case["not_judged"]} <= {case["id"] for case in smooth}
    assert len(smooth) == 3
    assert found["not_judged"] <= 0.1 * sum(case["draws"] for case in smooth)
    assert sum(case["free_run"] for case in judged) >= 70
    assert {case["id"].split("-")[0] for case in judged} == {"sequential", "test3"}
    assert sum(case["delta_logits"] is not None for case in judged) == 6  # the deep ones


def test_all_variants_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_properties: dict[str, str]
):
    found = checked("recorded-variants-cpu", tmp_path, monkeypatch, own_properties)
    assert capsys.readouterr().out.splitlines()[-3] == "IDENTICAL 15 of 15 cases, 1428 draws compared"
    assert (found["status"], found["defects"]) == (0, 0)
    assert all(case["delta_logits"] is not None for case in found["files"][0]["cases"])


def test_a_recording_of_another_platform_is_unverified_and_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_properties: dict[str, str]
):
    found = checked("recorded-cuda", tmp_path, monkeypatch, own_properties)
    assert (found["status"], found["verdict"], found["draws"]) == (3, "INCONCLUSIVE", 0)
    said = capsys.readouterr().out.splitlines()
    assert said[-4].startswith("UNVERIFIED ")
    assert "recorded on cuda (NVIDIA H200)" in said[-4]
    assert said[-3] == "INCONCLUSIVE 0 of 0 cases, 0 draws compared"


def bent(pair: ModelPair) -> ModelPair:
    """Return networks whose code vectors are a thousandth longer."""
    name = "quantize.embedding.weight"
    vae = replace(pair.vae, weights={**pair.vae.weights, name: pair.vae.weights[name] * 1.001})
    return replace(pair, vae=vae)


def test_the_allowances_are_tight_enough_to_see_a_changed_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_properties: dict[str, str]
):
    straight = cases.filled
    monkeypatch.setattr(cases, "filled", cache(lambda *sizes: bent(straight(*sizes))))
    found = checked("recorded-variants-cpu", tmp_path, monkeypatch, own_properties)
    assert found["status"] == 1
    assert capsys.readouterr().out.splitlines()[-3] == "DEFECT 0 of 15 cases, 1428 draws compared"
