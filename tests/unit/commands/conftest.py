"""Fixtures that several modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import tiny


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Checkpoint options of a tiny pair, saved with the buffer that tells its pyramid."""
    folder = tmp_path / "models"
    folder.mkdir()
    models = tiny()
    levels = torch.tensor([models.pyramid.levels()])
    save_file({**models.draft.weights, "lvl_1L": levels}, folder / "draft.safetensors")
    save_file({**models.target.weights, "lvl_1L": levels}, folder / "target.safetensors")
    save_file(dict(models.vae.weights), folder / "vae.safetensors")
    return [word for name in ("draft", "target", "vae") for word in (f"--{name}", str(folder / f"{name}.safetensors"))]
