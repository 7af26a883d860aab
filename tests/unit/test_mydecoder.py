"""What `sdvar-harness init` writes is right for every request that it takes, and refuses the others in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import harness.commands
from harness.errors import InputError
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.reference.sequential import sample_sequential
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3, 4)))


@pytest.fixture
def written(tmp_path: Path) -> ModuleType:
    path = tmp_path / "mydecoder.py"
    path.write_text((Path(harness.commands.__file__).parent / "mydecoder.txt").read_text())
    spec = importlib.util.spec_from_file_location("mydecoder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_scale_has_a_filter_of_its_own(written: ModuleType):
    request = Request((0, 3), 5, filters=((1, 0.0), (0, 0.5), (2, 0.0), (1, 0.0)))
    decoder = written.factory(MODELS, Settings(2))
    trace = decoder.decode(request, MODELS.noise(request))
    expected = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    assert torch.equal(trace.tokens_BL, expected.tokens_BL)


def test_what_no_draft_could_speculate_is_refused(written: ModuleType):
    request = Request((0,), 5, more_smooth=True)
    with pytest.raises(InputError, match="more_smooth=True: cannot be speculated: f_hat is no function of the tokens"):
        written.factory(MODELS, Settings(2)).decode(request, MODELS.noise(request))
