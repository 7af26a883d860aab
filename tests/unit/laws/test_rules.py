"""What the law of counts asks of a trace: of whom it is asked, and what it finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.errors import InputError
from harness.laws import Case, Subject, Violation, check
from harness.laws._law import NotOffered
from harness.laws._rules import _policies
from harness.models._pair import ModelPair
from harness.mutants._mutant import reporting
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import Noise
from harness.speculative.sampler import build_decoder

CASE = Case(patch_nums=(1, 2, 3), draft="close", draft_len=2, exact=False)


class Telling:
    """The harness's own decoder, some of its counts told otherwise."""

    contract = "token-identical"
    told: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.decoder = build_decoder(models, settings)

    def decode(self, request: Request, noise: Noise) -> Trace:
        return replace(self.decoder.decode(request, noise), **self.told)


def telling(**told: Any) -> type[Telling]:
    return type("Other", (Telling,), {"told": told})


COUNTS = ("target_calls", "target_rows", "draft_calls", "draft_rows")


def test_the_own_decoder_tells_every_count_and_they_are_those_of_the_spy():
    decoded = telling()(CASE.models, CASE.settings).decode(CASE.request, CASE.noise())
    assert all(sum(getattr(decoded, name)) > 0 for name in COUNTS)
    assert check("rules.recount", telling(), CASE)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_is_told_is_the_spys(name: str):
    with pytest.raises(Violation, match=rf"{name} \[1\] add up to 1, and a spy counted \d+"):
        check("rules.recount", telling(**{name: [1]}), CASE)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_is_not_told_is_not_wrong(name: str):
    assert check("rules.recount", telling(**{name: []}), CASE)


@pytest.mark.parametrize("law", ["rules.oracle", "rules.labour", "acceptance.real"])
def test_a_decoder_that_says_its_rule_need_not_show_its_rounds(law: str):
    case = replace(CASE, exact=True)
    assert check(law, reporting(lambda trace: trace.rounds.clear()), case)
    with pytest.raises(Violation, match="image 0"):
        check(law, reporting(lambda trace: [turns.pop(0) for turns in trace.rounds]), case)


@pytest.mark.parametrize("exact", [False, True])
def test_where_rounds_are_asked_one_that_shows_none_is_not_asked(exact: bool):
    with pytest.raises(NotOffered, match="no rounds in the trace"):
        check("rules.length", reporting(lambda trace: trace.rounds.clear()), replace(CASE, exact=exact))


def test_a_trace_without_rounds_need_not_count():
    assert check("rules.recount", telling(rounds=[], **{name: [] for name in COUNTS}), CASE)


@pytest.mark.parametrize("bonus", [False, True])
def test_the_border_of_collaborative_is_tried_beside_the_case_itself(bonus: bool):
    case = replace(CASE, policy="collaborative:2", bonus=bonus)
    tried = {(each.policy, each.bonus) for each in _policies(Subject(build_decoder), case)}
    assert {("collaborative:2", bonus), ("collaborative:2", True)} <= tried


def test_without_bonus_scales_collaborative_is_tried_all_the_same():
    def refusing(models: ModelPair, settings: Settings) -> Any:
        if settings.bonus:
            raise InputError("bonus", True, "is not drawn", "pass --no-bonus")
        return build_decoder(models, settings)

    case = replace(CASE, policy="collaborative:2", bonus=False)
    tried = {(each.policy, each.bonus) for each in _policies(Subject(refusing), case)}
    assert ("collaborative:2", False) in tried
    assert not any(bonus for _, bonus in tried)
