"""Published samplers inside torch.autocast, as people run them: right ones are right, and mistakes have their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.decoders import load_factory
from harness.errors import InputError
from harness.judge import Verdict
from harness.models import MODES
from harness.protocol import Request, Settings
from harness.verification import Verification
from tests.helpers import LAYOUTS, tiny, verify_here
from tests.published.checkout import edited, make

AUTOCAST = [name for name, (_, dtype) in MODES.items() if dtype is not None]
RIGHT = [(mode, layout) for mode in AUTOCAST for layout in LAYOUTS if layout != "one-scale"]


def run(
    checkout: Path, mode: str, layout: str = "plain", kind: str = "var", draft: str = "", **asked: Any
) -> Verification:
    settings = Settings("", policy="", options=(("checkout", str(checkout)),))
    models = tiny(LAYOUTS[layout]).in_mode("cpu", mode, draft)
    sequential = kind == "var"
    request = Request((0, 1), 0, **asked)
    return verify_here(models, load_factory(f"published:{kind}"), [settings], [request], sequential=sequential)


@pytest.mark.parametrize(("mode", "layout"), RIGHT)
@pytest.mark.parametrize("smooth", [False, True])
def test_a_right_sampler_is_right(tmp_path: Path, mode: str, layout: str, smooth: bool):
    result = run(make(tmp_path, "var"), mode, layout, more_smooth=smooth)
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE), result.first_divergence
    assert result.modes == (mode, mode)


@pytest.mark.parametrize("mode", AUTOCAST)
def test_a_right_speculative_one_is_right(tmp_path: Path, mode: str):
    assert run(make(tmp_path, "sdvar"), mode, kind="sdvar-parallel").verdict is Verdict.CONSISTENT


MISTAKES = [("wrong-positions", "positions"), ("flat-guidance", "guidance")]


@pytest.mark.parametrize(("mode", "mistake", "component"), [(mode, *each) for mode in AUTOCAST for each in MISTAKES])
def test_a_mistake_is_called_what_it_is(tmp_path: Path, mode: str, mistake: str, component: str):
    result = run(make(tmp_path, "var", mistake), mode)
    assert (result.verdict, result.first_divergence.component) == (Verdict.DEFECT, component)


@pytest.mark.parametrize("mode", [*AUTOCAST, "float32"])
def test_the_sampler_runs_inside_autocast_where_that_is_the_mode(tmp_path: Path, mode: str):
    dtype = MODES[mode][1]
    within = "not torch.is_autocast_enabled('cpu')" if dtype is None else f"torch.get_autocast_dtype('cpu') == {dtype}"
    checkout = edited(tmp_path, "var", ("            misbehave()", f"            assert {within}"))
    assert run(checkout, mode).verdict in (Verdict.IDENTICAL, Verdict.TIE)
    other = edited(tmp_path / "other", "var", ("            misbehave()", f"            assert not ({within})"))
    assert run(other, mode).first_divergence.component == "crash"


def test_one_autocast_is_around_both_networks(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        run(make(tmp_path, "var"), "autocast-float16", draft="float32")
    said = "draft_dtype=float32: published code computes both networks in one torch.autocast"
    assert str(caught.value) == f"{said}; pass --draft-dtype autocast-float16"
