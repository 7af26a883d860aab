"""The debug tools: nothing is in the way when off, nothing changes when on, every step is there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.__main__ import main
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.pyramid import ScalePyramid
from harness.speculative._policies import parse_policy
from harness.speculative.parts import PARTS
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from harness.speculative.tools._observer import NAMES, Observer, summary
from tests.toy import toy_pair

MODELS = toy_pair(ScalePyramid((1, 2, 3)), 5, seed=1, apart=0.5)
REQUEST = Request((0, 1, 1), 2, top_k=4)
OPTIONS = DecoderOptions(2, policy=parse_policy("rejection"))


def decoded(observer: Observer | None) -> Trace:
    return SpeculativeDecoder(MODELS, OPTIONS, observer=observer).decode(REQUEST, MODELS.noise(REQUEST))


def test_without_an_observer_nothing_is_in_the_way():
    decoder = SpeculativeDecoder(MODELS, OPTIONS)
    assert decoder.parts is PARTS
    assert decoder.models is MODELS


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_an_observer_changes_nothing_and_says_as_much_as_asked(level: int, tmp_path: Path):
    lines: list[str] = []
    seen, alone = decoded(Observer(level, tmp_path, lines.append)), decoded(None)
    assert torch.equal(seen.tokens_BL, alone.tokens_BL)
    assert torch.equal(seen.f_hat_BCPP, alone.f_hat_BCPP)
    assert seen.rounds == alone.rounds
    turns = [line for line in lines if " round " in line]
    steps = [line for line in lines if line.startswith("  step ")]
    assert bool(turns) is (level >= 1)
    assert bool(steps) is (level >= 2)
    assert all(("mean" in line) is (level == 3) for line in steps)


def test_every_named_tensor_is_written_and_is_the_real_one(tmp_path: Path):
    observer = Observer(folder=tmp_path)
    observer.begin("one")
    trace = decoded(observer)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"one-round-{k:03d}.safetensors" for k in range(len(files))]
    saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
    components = {name.split(".", 1)[1].split("/")[0].split(".")[-1] for name in saved}
    assert components == NAMES.keys()
    assert all(f"{side}.hidden/h_RnD" in {name.split(".", 1)[1] for name in saved} for side in ("draft", "target"))
    last = max(name for name in saved if name.endswith("tokens_BL"))
    assert torch.equal(saved[last], trace.tokens_BL)
    masks = [name for name in saved if "attention_mask" in name]
    assert masks
    assert all("target." in name for name in masks)  # drafting a scale at a time needs none


def test_time_and_memory_are_shared_out_among_the_components():
    observer = Observer()
    trace = decoded(observer)
    costs = dict(observer.table())
    assert 0 < sum(cost.seconds for cost in costs.values()) <= trace.seconds + 1e-2
    assert costs["target.hidden"].calls <= sum(trace.target_calls)
    assert max(cost.bytes for name, cost in costs.items() if "new_cache" in name) == trace.cache_bytes["target"]
    assert [cost.seconds for _, cost in observer.table()] == sorted((c.seconds for c in costs.values()), reverse=True)


def test_a_summary_counts_what_is_not_finite():
    assert summary(torch.tensor([1.0, 3.0, -torch.inf])) == "min 1 mean 2 max 3, 1 of 3 not finite"
    assert summary(torch.tensor([torch.nan])) == "no finite value of 1"


BAD = {
    "trace=4": ["--trace", "4"],
    "trace=-1": ["--trace=-1"],
    "save-intermediates=/no/such/folder": ["--save-intermediates", "/no/such/folder"],
    "sampler=sequential": ["--sampler", "sequential", "--profile"],
}


@pytest.mark.parametrize("said", BAD)
def test_bad_debug_options_are_one_line(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.png"
    arguments = ["sdvar-harness", "sample", "--seeds", "0", "--labels", "0", "--out", str(out), *BAD[said]]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}: ")
    assert not out.exists()
