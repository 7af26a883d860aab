"""What the golden check notes and makes of it, and what it refuses before memory is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.errors import InputError
from harness.golden import limits, store
from harness.golden.result import CaseResult, FileResult
from harness.golden.store import as_bytes
from harness.judge.verdict import Divergence, Verdict
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request
from tests.helpers import Layout, transformer_config


def test_a_defect_of_a_case_keeps_its_seed_and_scale():
    result = CaseResult("one", Request((0,), 7))
    result.defect("f_hat", "why", 2)
    result.defect("counts", "why not")
    found = [(d.component, d.detail, d.seed, d.scale) for d in result.defects]
    assert found == [("f_hat", "why", 7, 2), ("counts", "why not", 7, -1)]


@pytest.mark.parametrize(
    ("change", "downsampling", "numbers"),
    [({"V": 1000}, 1, 2 * 14 * 1000), ({"H": 100}, 1, 2 * 100 * 14**2), ({}, 64, 3 * (3 * 64) ** 2)],
)
def test_a_batch_is_refused_by_its_largest_tensor(
    change: dict[str, int], downsampling: int, numbers: int, monkeypatch: pytest.MonkeyPatch
):
    pyramid, config = ScalePyramid((1, 2, 3)), replace(transformer_config(Layout()), **change)
    monkeypatch.setattr(limits, "MOST_NUMBERS", 5 * numbers)
    limits.check_batch(5, pyramid, config, downsampling)
    with pytest.raises(InputError, match=rf"images=6.*at most {5 * numbers} numbers, not {6 * numbers}"):
        limits.check_batch(6, pyramid, config, downsampling)


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ([], Verdict.INCONCLUSIVE),
        (["right"], Verdict.IDENTICAL),
        (["right", "tied"], Verdict.TIE),
        (["tied", "unjudged"], Verdict.INCONCLUSIVE),
        (["right", "unjudged", "wrong"], Verdict.DEFECT),
    ],
)
def test_the_worst_case_is_the_verdict_of_a_file(cases: list[str], verdict: Verdict):
    request = Request((0,), 7)
    tie = Divergence("tie", "by hand", 7)
    made = {
        "right": CaseResult("a", request, 9, 9),
        "tied": CaseResult("b", request, 9, 8, ties=[tie]),
        "unjudged": CaseResult("c", request, 9, not_judged=9, ties=[tie]),
        "wrong": CaseResult("d", request, 9, not_judged=9, defects=[Divergence("image", "by hand", 7)]),
    }
    result = FileResult("of-no-file", [made[name] for name in cases])
    assert result.verdict is verdict
    assert replace(result, defects=["stray"]).verdict is Verdict.DEFECT
    unverified = replace(result, unverified="elsewhere").verdict
    assert unverified is (Verdict.DEFECT if verdict is Verdict.DEFECT else Verdict.INCONCLUSIVE)


def test_a_file_larger_than_any_recording_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "large.safetensors"
    metadata = {"device": "cpu"}
    path.write_bytes(as_bytes(metadata, ({"id": "a"},), {"a/tokens": torch.zeros(1)}))
    size = path.stat().st_size
    monkeypatch.setattr(store, "MOST_BYTES", size)
    assert store.read(path).metadata["device"] == "cpu"
    monkeypatch.setattr(store, "MOST_BYTES", size - 1)
    with pytest.raises(InputError, match=f"has {size} bytes, more than the {size - 1} of any recording"):
        store.read(path)
