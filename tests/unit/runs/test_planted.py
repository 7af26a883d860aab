"""Planted bugs are caught by a verification, and located."""

from __future__ import annotations

import json
from inspect import getsourcelines
from pathlib import Path

import pytest

from harness.__main__ import app
from harness.decoders._factory import load_factory
from harness.judge._verdict import Verdict
from harness.mutants import guidance, masks, positions, reuse, state, streams, windows
from harness.mutants._hunt import MUTANTS
from harness.mutants._mutant import Mutant, given
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from scripts.located import truths
from tests.helpers import Layout, digits, some, tiny, verify_here

FOUR = Layout((1, 2, 3, 4))
REQUEST = Request((0, 1, 2), 0)
# f_hat and draw follow the tokens of the earliest scale that the bug reaches
FIRST_SCALE = {
    "positions.offset": 2, "guidance.swapped": 0, "state.twice": 0, "masks.corner": 2,
    "randomness.redrawn": 1, "randomness.wrong-scale": 1,
}  # fmt: skip
# what these change shows with a close draft, a bonus scale or a second request alone (test_suspects.py)
BEYOND = [thing for module in (reuse, streams, windows) for thing in vars(module).values() if isinstance(thing, Mutant)]
# and what windows of more than six scales, or weights that float32 does not hold, show alone
BEYOND += [masks.LONG, masks.OPEN_END, positions.SIX_LEVELS, guidance.NARROW_WEIGHTS, guidance.NARROW_RAMP]
LOCATED = [mutant for mutant in MUTANTS if mutant.component and mutant not in BEYOND]


def run_cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        app(list(arguments), standalone_mode=True)
    return int(stop.value.code or 0)


def test_bugs_of_every_component_are_planted():
    assert {mutant.component for mutant in LOCATED} == {
        "positions", "guidance", "f_hat", "mask", "cache", "draw", "crash",
    }  # fmt: skip
    assert FIRST_SCALE.keys() <= {mutant.id for mutant in LOCATED}


@pytest.mark.parametrize("mutant", LOCATED, ids=lambda mutant: mutant.id)
def test_a_planted_bug_is_caught_and_located(mutant: Mutant):
    models = tiny(FOUR)
    result = verify_here(models, mutant, [Settings(2)], [REQUEST])
    first = result.first_divergence
    assert result.verdict is Verdict.DEFECT
    assert result.verdict.exit_status == 1
    assert first.component == mutant.component
    assert first.seed == 0
    if first.component == "crash":
        assert "StopIteration" in first.detail
        return
    assert 0 <= first.image < 3
    assert models.pyramid.level_of(first.position) == first.scale
    assert first.scale == FIRST_SCALE.get(mutant.id, first.scale)
    assert f"scale {first.scale}, position {first.position}" in str(first)


@pytest.mark.parametrize("draft_len", [1, 2, 3, 4])
@pytest.mark.parametrize("mutant", [guidance.SWAPPED, state.TWICE], ids=lambda mutant: mutant.id)
def test_a_planted_bug_is_caught_for_every_draft_len(mutant: Mutant, draft_len: int):
    first = verify_here(tiny(FOUR), mutant, [Settings(draft_len)], [REQUEST]).first_divergence
    assert (first.component, first.scale) == (mutant.component, 0)


@pytest.mark.parametrize("name", some(3, ["positions:OFFSET", "guidance:SWAPPED", "state:TWICE"]))
def test_the_command_line_catches_a_planted_bug(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = tmp_path / "report.json"
    status = run_cli(
        "verify", "--implementation", f"harness.mutants.{name}", "--seeds", "0", "--labels", "3", "--draft-len", "2",
        "--json", str(report),
    )  # fmt: skip
    assert status == 1
    out, component = capsys.readouterr().out, load_factory(f"harness.mutants.{name}").component
    assert any(line.startswith("DEFECT contract token-identical: ") for line in out.splitlines()[-3:])
    assert f"component {component}" in out
    first = json.loads(report.read_text())["first_divergence"]
    assert first["component"] == component
    assert digits().pyramid.level_of(first["position"]) == first["scale"]
    assert f"scale {first['scale']}, position {first['position']}" in out


def test_the_lines_of_a_bug_are_those_of_every_function_that_it_names():
    """Whether by name or by module, as `scripts.located` counts them."""
    lines = truths()["guidance.capped"]  # windows.py: plant.passed(...), which hands the change to `given`
    source, first = getsourcelines(given)
    assert {*range(first, first + len(source))} in [found for _, found in lines]
