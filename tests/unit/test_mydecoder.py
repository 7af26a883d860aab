"""What `sdvar-harness init` writes is right for every request that it takes, and refuses the others in one line."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from harness.errors import InputError
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.reference.sequential import sample_sequential
from harness.report._next import next_step
from tests.helpers import Layout, tiny, verify_here
from tests.unit.judge.planted_lines import TEMPLATE, module_of

MODELS = tiny(Layout((1, 2, 3, 4)))


@pytest.fixture
def written(tmp_path: Path) -> ModuleType:
    return module_of(TEMPLATE, tmp_path / "mydecoder.py")


def test_every_scale_has_a_filter_of_its_own(written: ModuleType):
    request = Request((0, 3), 5, filters=((1, 0.0), (0, 0.5), (2, 0.0), (1, 0.0)))
    decoder = written.factory(MODELS, Settings(2))
    trace = decoder.decode(request, MODELS.noise(request))
    expected = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    assert torch.equal(trace.tokens_BL, expected.tokens_BL)


TURN = "        t = self.request.cfg * self.models.pyramid.ramp(si)\n"
RAISES = "        if si == 3:\n            raise KeyError(si)\n"


@pytest.mark.parametrize(("ramp", "before"), [("si", None), ("si + (si == 1)", ("guidance", 1))])
def test_what_was_wrong_before_a_crash_is_named_beside_it(ramp: str, before: object, tmp_path: Path):
    text = TEMPLATE.replace(TURN, f"{TURN.replace('ramp(si)', f'ramp({ramp})')}{RAISES}")
    decoder = module_of(text, tmp_path / "crashing.py").factory
    result = verify_here(MODELS, decoder, [Settings(2)], [Request((0, 3), 5)])
    first, wrong = result.first_divergence, result.before_the_crash
    assert first is not None
    assert first.component == "crash"
    assert (wrong and (wrong.component, wrong.scale)) == before
    assert ("scales 0..1 of 4 final; last good tensor: f_hat of scale 1; " in result.so_far[0]) is (before is None)
    says = "what was wrong before it crashed: guidance" if before else r"crashing\.py:\d+, where it raises"
    step = next_step(result)
    assert step is not None
    assert re.match(f"mend {says}", step[0])


@pytest.mark.parametrize("made", ["self.f_hats.append(", "self.kept.append("])
def test_a_scale_that_is_half_made_is_neither_wrong_nor_right(made: str, tmp_path: Path):
    text = TEMPLATE.replace(
        f"            {made}", f"            if si == 2:\n                raise KeyError(si)\n            {made}"
    )
    decoder = module_of(text, tmp_path / "half.py").factory
    result = verify_here(MODELS, decoder, [Settings(2)], [Request((0, 3), 5)])
    assert (result.settings[0].total("defects"), result.before_the_crash) == (1, None)
    assert "scales 0..1 of 4 final; last good tensor: f_hat of scale 1; " in result.so_far[0]


def test_a_decode_that_raises_at_once_shows_nothing_of_the_one_before(tmp_path: Path):
    begin = "        config = self.models.target.config\n"
    text = TEMPLATE.replace(begin, f"{begin}        if request.seed == 6:\n            raise KeyError\n", 1)
    decoder = module_of(text, tmp_path / "once.py").factory
    result = verify_here(MODELS, decoder, [Settings(2)], [Request((0,), 5), Request((0,), 6)])
    assert (result.settings[0].total("defects"), result.before_the_crash) == (1, None)
    assert result.so_far == ["no number read"]


@pytest.mark.parametrize("has_one", [True, False])
def test_a_decoder_that_crashes_without_so_far_is_asked_for_it(has_one: bool, tmp_path: Path):
    text = TEMPLATE.replace(TURN, f"{TURN}{RAISES}").replace("def so_far(", f"def {'so_far' if has_one else 'made'}(")
    decoder = module_of(text, tmp_path / "silent.py").factory
    result = verify_here(MODELS, decoder, [Settings(2)], [Request((0, 3), 5)])
    step = next_step(result)
    assert step is not None
    lacks, asked = (
        result.so_far[0].endswith("; the decoder has no method so_far()"),
        "or let so_far() return" in step[0],
    )
    assert (lacks, asked) == (not has_one, not has_one)


def test_what_no_draft_could_speculate_is_refused(written: ModuleType):
    request = Request((0,), 5, more_smooth=True)
    with pytest.raises(InputError, match="more_smooth=True: cannot be speculated: f_hat is no function of the tokens"):
        written.factory(MODELS, Settings(2)).decode(request, MODELS.noise(request))
