"""What `sample` writes, and what it does not replace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.unit.commands.running import run


@pytest.mark.parametrize("sampler", ["sequential", "speculative"])
def test_sample_writes_a_grid_and_the_tokens(
    sampler: str, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out, tokens = tmp_path / "grid.png", tmp_path / "tokens.safetensors"
    options = ("--seeds", "0:2", "--draft-len", "2", "--sampler", sampler, "--out", str(out), "--tokens", str(tokens))
    assert run(monkeypatch, "sample", *pair, *options) == 0
    with Image.open(out) as grid:
        assert grid.text["seeds"] == "[0, 1]"
        assert grid.text["sampler"] == sampler
        assert grid.text["pictures"].startswith("label 0, seed 0; label 1, seed 0; ")
        assert json.loads(grid.text["weights"]).keys() == {"draft", "target", "vae"}
        assert grid.text["command"].startswith("sdvar-harness sample --draft ")
    saved = load_file(tokens)
    assert saved["seed-1-image-0/tokens"].shape == (3, 14)
    assert saved["seed-1-image-0/labels"].tolist() == [0, 1, 2]
    assert f"wrote {out}" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["code:1", "handoff:2", "collaborative:0"])
def test_sample_draws_where_the_draft_decides_alone(
    policy: str, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "grid.png"
    options = ("--seeds", "0", "--labels", "0,1", "--draft-len", "2", "--policy", policy, "--out", str(out))
    assert run(monkeypatch, "sample", *pair, *options) == 0
    with Image.open(out) as grid:
        assert grid.text["policy"] == policy


@pytest.mark.parametrize("option", ["out", "tokens", "save-intermediates"])
def test_sample_replaces_nothing_unless_told_to(
    option: str, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    there = tmp_path / ("seed-0-image-0-round-000.safetensors" if option == "save-intermediates" else "there")
    there.write_bytes(b"mine")
    given = tmp_path if option == "save-intermediates" else there
    out = () if option == "out" else ("--out", str(tmp_path / "grid.png"))
    options = ("--seeds", "0", "--labels", "0", "--draft-len", "2", f"--{option}", str(given), *out)
    assert run(monkeypatch, "sample", *pair, *options) == 2
    remedy = f"exists already; pass --force to replace it, or another --{option}"
    assert remedy in capsys.readouterr().err.replace(": is", " is")
    assert there.read_bytes() == b"mine"
    assert not (tmp_path / "grid.png").exists()
    assert run(monkeypatch, "sample", *pair, *options, "--force") == 0
    assert "wrote " in capsys.readouterr().out
    assert there.read_bytes() != b"mine"
