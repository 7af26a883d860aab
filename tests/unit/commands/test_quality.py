"""`quality` and `verify --max-loss`: what is refused, exit status, what is written."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.decoders._factory import OWN_DECODER
from harness.models import DIGITS, load_digits
from harness.protocol._decoder import Settings
from harness.quality import digits_means
from harness.quality._distances import Estimate
from harness.quality._rows import QualityRow
from harness.quality._study import NO_MEANS, USUAL_IMAGES, Measured, Study
from harness.runs._decodes import recorded_result
from scripts.measured import read_quality
from scripts.quality_page import quality_markdown
from tests.helpers import Layout, command, tiny
from tests.published.checkout import make
from tests.unit.quality.means import corners

ZERO = Estimate(0.0, -0.01, 0.01, 0.05)
LARGE, WIDE = Estimate(0.5, 0.4, 0.6, 0.55), Estimate(0.05, -0.5, 0.6, 0.1)
BASE = QualityRow(
    "sequential", "A", "", USUAL_IMAGES, 42, 10.0, 1.0, real=ZERO, law=ZERO, accuracy=ZERO, yardstick=True
)
VERIFY = ("verify", "--contract", "C", "--policy", "kl:0.1", "--seeds", "0:1", "--labels", "0", "--draft-len", "5")


def found(drift: Estimate, most: float | None = 0.1) -> Measured:
    row = replace(BASE, name="kl:0.1", contract="C", draft_len="5", calls=7.9, loss=ZERO, drift=drift, yardstick=False)
    draft = replace(row, name="the draft alone", contract="", draft_len="", drift=LARGE, yardstick=True)  # LOST, always
    return Measured("digits", "cpu", 1.5, "a classifier", "a unit", "real digits", 40, [BASE, row, draft], most)


def measured(monkeypatch: pytest.MonkeyPatch, drift: Estimate) -> list[Study]:
    """Put figures in the place of a drawing; return what was asked for."""
    seen: list[Study] = []

    def run(pair, means, what, keeping, progress):
        seen.append(what)
        return found(drift, what.most)

    for module in ("harness.quality", "harness.verification"):  # of `quality`, and of `verify`
        monkeypatch.setattr(f"{module}.run_study", run)
    return seen


@pytest.mark.parametrize(
    ("drift", "status", "word"), [(ZERO, 0, "KEPT"), (LARGE, 1, "LOST"), (WIDE, 3, "INCONCLUSIVE")]
)
def test_the_verdict_is_the_exit_status(monkeypatch, capsys, tmp_path: Path, drift, status, word):
    seen = measured(monkeypatch, drift)
    options = ("--json", str(tmp_path / "q.json"))
    assert command(monkeypatch, "quality", "--max-loss", "0.1", "--policies", "kl:0.1", *options) == status
    out = capsys.readouterr().out
    assert f"\n{word} kl:0.1: " in out
    assert "bias at N = 10000, which is taken out: +0.050 in FD to real data" in out
    assert [source.name for source in seen[0].others] == ["sequential, other seeds", "the draft alone", "kl:0.1"]
    assert json.loads((tmp_path / "q.json").read_text())["rows"][1]["verdict"] == word
    assert read_quality(tmp_path / "q.json") == found(drift)
    same = " | ".join([str(ZERO)] * 3)
    row = f"| `kl:0.1` | C | 7.9 | {same} | {drift} | - | {ZERO} | - | - | {word} |"
    assert row in quality_markdown(read_quality(tmp_path / "q.json"))


def test_without_a_loss_nothing_is_judged(monkeypatch, capsys):
    measured(monkeypatch, LARGE)
    assert command(monkeypatch, "quality", "--policies", "kl:0.1") == 0
    assert "LOST" not in capsys.readouterr().out


@pytest.mark.parametrize(("drift", "status"), [(ZERO, 0), (LARGE, 1), (WIDE, 3)])
def test_verify_takes_the_verdict_over(monkeypatch, capsys, tmp_path: Path, drift, status):
    seen = measured(monkeypatch, drift)
    path, run = tmp_path / "v.json", tmp_path / "run.db"
    kept = ("--json", str(path), "--run", str(run))
    assert command(monkeypatch, *VERIFY, "--max-loss", "0.1", "--quality-images", "500", *kept) == status
    out, told = capsys.readouterr().out, json.loads(path.read_text())
    assert (seen[0].images, seen[0].most, [source.name for source in seen[0].others]) == (500, 0.1, ["kl:0.1"])
    assert told["verdict"] == {0: "CONSISTENT", 1: "DEFECT", 3: "INCONCLUSIVE"}[status]
    assert told["run"]["quality"]["rows"][1]["drift"]["value"] == drift.value
    again = recorded_result(run)
    assert (again.verdict.value, again.inconclusive) == (told["verdict"], told["inconclusive"])
    assert json.loads(again.to_json())["run"]["quality"]["rows"][1]["drift"]["value"] == drift.value
    if status == 1:
        assert str(again.first_divergence) in out
        assert told["first_divergence"]["component"] == "quality"
        assert "component quality (kl:0.1: drift 0.500 ± 0.100, above 0.1)" in out
    if status == 3:
        assert "inconclusive: quality of kl:0.1" in out


@pytest.mark.parametrize(("high", "status"), [(0.3, 0), (0.8, 3)])
def test_nats_alone_need_no_features(monkeypatch, capsys, high: float, status: int):
    asked = []

    def run(pair, means, what, keeping, progress):
        asked.append((means, what))
        row = replace(found(LARGE).rows[1], nats=Estimate(0.2, 0.1, high))
        return replace(found(ZERO), rows=[BASE, row], most=what.most, most_nats=what.most_nats)

    monkeypatch.setattr("harness.verification.run_study", run)
    assert command(monkeypatch, *VERIFY, "--max-nats", "0.5") == status
    own_claim = [word for word in VERIFY if word not in ("--contract", "C")]
    assert command(monkeypatch, *own_claim, "--max-nats", "0.5") == status
    assert asked[0][0] is NO_MEANS
    assert (asked[0][1].most, asked[0][1].most_nats) == (None, 0.5)
    assert f"kl:0.1: 0.200 [0.100, {high:.3f}] nats, " in capsys.readouterr().out


REFUSED = {
    ("verify", "--max-loss", "0.1"): "max_loss=0.1: states a loss, which contract C alone allows, and the claim is A",
    ("verify", "--max-nats", "0.5"): "max_nats=0.5: states a loss, which contract C alone allows, and the claim is A",
    ("verify", "--contract", "B", "--policy", "rejection", "--max-nats", "0.5"): (
        "max_nats=0.5: states a loss, which contract C alone allows, and the claim is B (distribution-identical); pass"
    ),
    (*VERIFY, "--max-nats", "-1"): "max_nats=-1.0: must be above 0",
    (*VERIFY, "--max-loss", "0"): "max_loss=0.0: must be above 0",
    (*VERIFY, "--max-loss", "0.1", "--quality-images", "10"): (
        "quality_images=10: must be at least 80, two a block; pass --quality-images 80"
    ),
    ("quality", "--images", "10"): "images=10: must be at least 80",
    ("quality", "--blocks", "5", "--images", "400"): "blocks=5: must be at least 10",
    ("quality", "--max-loss", "nan"): "max_loss=nan: must be a finite number",
    ("quality", "--policies", "greedy"): "policies=greedy: draws one image a label",
    ("quality", "--policies", "match:x"): "policy=match:x",
    ("quality", "--models", "d16-d30"): "features=None: are needed for d16-d30",
    ("quality", "--features", "none.pth"): "features=none.pth: no such file",
    ("quality", "--real", "none.npz"): "real=none.npz: no such file",
    ("quality", "--resume"): "resume=True: goes on with a run that was kept",
    ("quality", "--control", "-1"): "control=-1: must be 0 or more",
    ("quality", "--labels", "10"): "labels=10: must lie in 0..9",
    ("quality", "--policies", "coupled", "--graphs"): "graphs=True: need a CUDA device, not cpu; pass --device cuda",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_input_is_one_line(monkeypatch, capsys, arguments: tuple[str, ...]):
    assert command(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {REFUSED[arguments]}"), error
    assert "\n" not in error


def test_recorded_and_compiled_work_is_asked_of_the_own_decoder(monkeypatch):
    seen = measured(monkeypatch, ZERO)
    built: list[Settings] = []
    monkeypatch.setattr("harness.speculative.sampler.build_decoder", lambda pair, settings: built.append(settings))
    command(monkeypatch, "quality", "--policies", "coupled,kl:0.1", "--draft-len", "2,5", "--graphs", "--compile")
    mine = {source.name: source.settings for source in seen[0].others if source.factory == OWN_DECODER}
    assert list(mine) == [
        "coupled draft_len 2 graphs compiled", "coupled graphs compiled",
        "kl:0.1 draft_len 2 graphs compiled", "kl:0.1 graphs compiled",
    ]  # fmt: skip
    assert built == list(mine.values())
    assert all(how.graphs and how.compiled for how in built)
    assert [how.draft_len for how in mine.values()] == ["2", "5", "2", "5"]


def test_without_torchmetrics_the_extra_is_named(monkeypatch, capsys):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchmetrics" else there(name))
    assert command(monkeypatch, "quality") == 2
    assert 'pip install ".[quality]" in the clone' in capsys.readouterr().err


def test_another_draft_of_digits_is_measured_by_their_features(monkeypatch, capsys, tmp_path: Path):
    digits, file, asked = load_digits(), tmp_path / "draft.safetensors", []
    weights = {name: weight + 1 for name, weight in digits.draft.weights.items()}
    save_file(weights, file)

    def run(pair, means, *others):
        asked.append((pair, means))
        return found(ZERO)

    monkeypatch.setattr("harness.quality.run_study", run)
    assert command(monkeypatch, "quality", "--draft", str(file), "--images", "80") == 0
    (pair, means), (target, vae) = asked[0], (digits.target, digits.vae)
    assert means.real is not None and means.real.name == digits_means().real.name
    for side, expected in ((pair.draft, weights), (pair.target, target.weights), (pair.vae, vae.weights)):
        assert all(torch.equal(side.weights[name], weight) for name, weight in expected.items())
    others = [
        word for name in ("draft", "target", "vae") for word in (f"--{name}", str(DIGITS / f"{name}.safetensors"))
    ]
    capsys.readouterr()
    assert command(monkeypatch, "quality", *others) == 2  # files of one's own may draw other images
    assert "features=None: are needed for custom" in capsys.readouterr().err


def test_everything_from_the_command_line(monkeypatch, capsys, tmp_path: Path):
    """Published code and the harness's own decoder, drawn, kept and measured; gone on with, nothing is drawn again."""
    monkeypatch.setattr("harness.commands._inputs.load_digits", lambda: tiny(Layout((1, 2, 3))))
    monkeypatch.setattr("harness.quality.digits_means", lambda: corners(3))
    given = ["--implementation", "published:sdvar-parallel", "--checkout", str(make(tmp_path, "sdvar")), "--in-process"]
    given += ["--option", "gamma=2", "--policies", "coupled,rejection", "--draft-len", "3"]
    given += ["--images", "30", "--blocks", "10"]
    given += ["--batch", "10", "--cfg", "2", "--run", str(tmp_path / "q.db"), "--max-loss", "1e6"]
    assert command(monkeypatch, "quality", *given, "--json", str(tmp_path / "a.json")) == 3  # 70 images at least
    out = capsys.readouterr().out
    assert "INCONCLUSIVE published:sdvar-parallel gamma=2: 30 images are too few for 7 features: 70 or more" in out
    monkeypatch.setattr("harness.quality._draw.Artist.do", None)
    assert command(monkeypatch, "quality", *given, "--resume", "--json", str(tmp_path / "b.json")) == 3
    first, second = (read_quality(tmp_path / f"{name}.json").rows for name in "ab")
    assert first == second
    assert [row.contract for row in first] == ["A", "A", "", "A", "B", "C"]
    assert abs(first[3].drift.value) < 1e-6  # the same tokens; f_hat is summed in another order
