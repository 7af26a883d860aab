"""The state machine finds planted bugs, and what it prints is a program that replays the failure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from harness.judge._verdict import Broken
from harness.laws import Case
from harness.mutants._mutant import production
from harness.mutants.masks import CORNER
from harness.mutants.state import stale_input, twice
from harness.speculative.parts import PARTS, Parts
from tests.property.machine import DecodeMachine

# no shrinking: this is about finding and replaying, and a minimal trace costs most of the time
FIND = settings(
    max_examples=60, stateful_step_count=30, deadline=None, database=None, derandomize=True,
    phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
)  # fmt: skip
CASE = Case((1, 2), V=3)


class Planted(DecodeMachine):
    """The machine over a decoder with one bug."""


def mask_of(factory: object) -> object:
    return factory(CASE.models, CASE.settings).parts.attention_mask  # type: ignore[operator]


BUGS = {
    "twice": replace(PARTS, accumulate=twice),
    "stale-input": replace(PARTS, update_state_with_accepted_tokens=stale_input),
    "corner": replace(PARTS, attention_mask=mask_of(CORNER)),
}


def program(error: BaseException) -> str:
    """Return the lines of the printed trace."""
    notes = "\n".join(getattr(error, "__notes__", [])).splitlines()
    return "\n".join(line for line in notes if line.startswith("state"))


@pytest.mark.parametrize("parts", BUGS.values(), ids=BUGS.keys())
def test_a_planted_bug_is_found_and_its_trace_replays(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Planted, "parts", parts)
    with pytest.raises(Broken) as found:
        run_state_machine_as_test(Planted, settings=FIND)
    trace = program(found.value)
    assert trace.startswith("state = Planted()\nstate.begin(case=Case(")
    names = {"Planted": Planted, "Case": Case}
    with pytest.raises(Broken) as replayed:
        exec(trace, names)
    assert str(replayed.value) == str(found.value)
    monkeypatch.setattr(Planted, "parts", PARTS)
    exec(trace, names)  # the correct decoder passes the same steps


def test_the_machine_starts_from_the_production_parts():
    assert DecodeMachine.parts == production(CASE.models, CASE.settings).parts
