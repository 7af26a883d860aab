"""A batch that goes in step, by the least that one of its images accepts, is right; one that goes by less is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness import ModelPair, Request, Settings, Trace, build_decoder
from harness.laws import Case, Violation, check
from harness.laws._law import NotOffered
from harness.mutants._mutant import patched
from tests import doors

CASE = Case(patch_nums=(1, 2, 3, 4), labels=(0, 1, 2, 3), draft="close", draft_len=2, seed=3, bonus=True)
LAWS = ("batch.rounds", "batch.bonus", "batch.caches", "acceptance.honest", "rules.recount")


def _less(verified: Any, window: Any, bonus: bool) -> Any:
    outcome = doors.least(verified, window, bonus)
    end = max(1, outcome.finished[0] - (len(outcome.accepted) > 1))  # alone an image goes as it must
    return replace(outcome, accepted=[min(n, end) for n in outcome.accepted], finished=[end] * len(outcome.accepted))


@pytest.mark.parametrize("name", LAWS)
def test_a_batch_in_step_keeps_the_laws_of_rounds(name: str):
    for seed in range(3, 7):
        check(name, doors.lock_step, replace(CASE, seed=seed))


class Bare:
    """A decoder that has nothing but what it must have, and shows tuples."""

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self._inner = build_decoder(models, settings)

    contract = "token-identical"

    def decode(self, request: Request, noise: Any) -> Trace:
        made = self.__dict__["_inner"].decode(request, noise)
        return replace(made, rounds=tuple(map(tuple, made.rounds)), target_calls=tuple(made.target_calls))

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def test_laws_take_a_decoder_as_verify_does():
    for name in ("acceptance.token-identical", "batch.rounds"):
        check(name, Bare, replace(CASE, bonus=False))
    with pytest.raises(NotOffered, match="which rule it follows"):
        check("rules.oracle", Bare, CASE)


@pytest.mark.parametrize("name", ["batch.rounds", "acceptance.honest"])
def test_one_that_goes_by_less_is_seen(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doors, "IN_STEP", patched({"harness.speculative._round:fetch_outcome": _less}))
    with pytest.raises(Violation, match=r"round 0 was|corrected iff a drafted scale was rejected"):
        check(name, doors.lock_step, replace(CASE, bonus=False))
