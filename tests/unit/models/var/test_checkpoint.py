"""Checkpoint files: loaded whole or refused with every bad name; nothing in them is executed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.errors import InputError
from harness.models._pair import ModelPair
from harness.models.var.checkpoint import load_transformer, transformer_from
from tests.helpers import (
    LAYOUTS,
    Layout,
    autoencoder_config,
    random_autoencoder,
    random_transformer,
    tiny,
    transformer_config,
)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"head.bias": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=r"target=.*bad.pth: is a file of torch.save, and needs pathlib"):
        load_transformer(tmp_path / "bad.pth")
    assert not (tmp_path / "executed").exists()


def test_every_bad_name_is_listed_at_once():
    tensors = dict(tiny().target.weights)
    del tensors["blocks.1.ffn.fc2.bias"]
    tensors |= {"surplus": torch.zeros(1), "head.bias": torch.zeros(4, 2)}
    with pytest.raises(InputError) as error:
        transformer_from(tensors, "target=x", (1, 2, 3))
    for part in ("3 tensors", "missing blocks.1.ffn.fc2.bias", "unknown surplus", "shape of head.bias is (4, 2)"):
        assert part in str(error.value)


def test_an_unknown_pyramid_asks_for_its_sides():
    with pytest.raises(InputError, match="no known pyramid has S=3 scales and L=14 positions; pass --patch-nums"):
        transformer_from(tiny().target.weights, "target=x")


@pytest.mark.parametrize(
    ("change", "name"),
    [({"V": 12}, "draft V=12"), ({"C": 5}, "draft C=5"), ({"classes": 4}, "draft classes=4")],
)
def test_a_draft_of_other_sizes_is_refused(change: dict, name: str):
    models = tiny()
    draft = random_transformer(replace(transformer_config(Layout()), **change), 0)
    with pytest.raises(InputError, match=name):
        ModelPair(draft, models.target, models.vae)


def test_an_autoencoder_of_other_sizes_is_refused():
    models = tiny()
    vae = random_autoencoder(replace(autoencoder_config(Layout()), V=12), 0)
    with pytest.raises(InputError, match="vae V=12: must equal the target's 11"):
        ModelPair(models.draft, models.target, vae)
    vae = random_autoencoder(autoencoder_config(LAYOUTS["phi-per-scale"]), 0)
    with pytest.raises(InputError, match="vae φ=4: must be one a scale"):
        ModelPair(models.draft, models.target, vae)
