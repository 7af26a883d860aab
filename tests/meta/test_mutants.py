"""The laws catch every planted bug, and the hunt itself cannot pass by finding nothing."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.laws import LAWS, Case, CaseList, Law, Subject, Violation, try_law
from harness.laws._conformance import FAMILIES
from harness.mutants._hunt import MUTANTS, Caught, hunt, hunting_cases
from harness.mutants._mutant import Mutant, production
from tests.helpers import some

HEALTHY = Mutant("masks.healthy", "nothing", "no bug at all", production)
CASES = hunting_cases(16)
ALONE = [mutant for mutant in MUTANTS if mutant.alone]
ELSEWHERE, TRIED = hunting_cases(8), 2


@pytest.mark.parametrize("mutant", some(16, MUTANTS), ids=lambda mutant: mutant.id)
def test_a_law_of_its_family_catches_a_planted_bug(mutant: Mutant):
    caught = hunt(mutant, CASES, "first")
    assert not caught.survived
    assert caught.smallest is not None
    assert caught.smallest.case in [violation.case for violation in caught.own]


def test_every_family_has_two_bugs_that_it_alone_must_catch():
    names = {module.__name__.rpartition(".")[2].removeprefix("_") for module in FAMILIES}
    assert names == {law.family for law in LAWS} == {mutant.family for mutant in MUTANTS}
    alone = Counter(mutant.family for mutant in MUTANTS if mutant.alone)
    assert all(alone[name] >= 2 for name in names), alone


def test_bugs_are_told_apart():
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.change for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.origin for mutant in MUTANTS)


def breaks(law: Law, mutant: Mutant, cases: Sequence[Case]) -> bool:
    """Return whether a law catches a bug; nobody reads the case, and none is searched that is smaller."""
    return try_law(law, Subject(mutant), CaseList(cases, passes=0)).violation is not None


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.id)
def test_a_law_catches_two_bugs_of_its_family(law: Law):
    caught = []
    for mutant in (mutant for mutant in MUTANTS if mutant.family == law.family):
        with mutant.planted():
            caught += [mutant.id] * breaks(law, mutant, CASES)
        if len(caught) == 2:
            return
    pytest.fail(f"{law.id} catches {caught} alone")


def elsewhere(mutant: Mutant, turn: int) -> list[str]:
    """Return the laws of other families that catch a bug, each of them in `TRIED` of the cases.

    Which ones goes with the law and with the turn: a bug meets all cases, and a law every case with some bug. All cases
    for every pair take four times as long; they showed no more of three bugs that others see, which several laws do.
    """
    others = [law for law in LAWS if law.family != mutant.family]
    step = len(ELSEWHERE) // TRIED
    with mutant.planted():
        return [law.id for k, law in enumerate(others) if breaks(law, mutant, ELSEWHERE[(turn + k) % step :: step])]


@pytest.mark.slow
@pytest.mark.parametrize(("turn", "mutant"), list(enumerate(ALONE)), ids=[mutant.id for mutant in ALONE])
def test_no_law_of_another_family_catches_a_bug_that_is_its_familys_alone(turn: int, mutant: Mutant):
    assert elsewhere(mutant, turn) == []


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(len(ELSEWHERE) // TRIED))
def test_a_bug_that_few_cases_show_to_others_is_seen_at_every_turn(turn: int):
    (rare,) = (mutant for mutant in MUTANTS if mutant.id == "guidance.zero-default")  # in 2 of the 8, by six laws
    assert not rare.alone
    assert elsewhere(rare, turn)


def test_a_decoder_without_a_bug_survives():
    assert hunt(HEALTHY, CASES[:4], "family").survived


def test_a_bug_that_another_family_catches_is_not_its_familys_alone():
    own, other = (next(law for law in LAWS if law.family == family) for family in ("masks", "state"))
    violations = [Violation(law, Case(), "found") for law in (own, other)]
    everybodys = Mutant("masks.x", "x", "x", production)
    assert not Caught(everybodys, violations).survived
    alone = Mutant("masks.x", "x", "x", production, alone=True)
    assert Caught(alone, violations).survived
    assert not Caught(alone, violations[:1]).survived
    assert Caught(everybodys, violations[1:]).survived


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sdvar-harness", "mutants", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command_lists_what_caught_a_bug(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "mutants.json"
    status = run(
        monkeypatch, "--only", "masks.corner,guidance.odd", "--examples", "6", "--verbose", "--json", str(file)
    )
    out, document = capsys.readouterr().out, json.loads(file.read_text())
    assert status == 0
    assert "CAUGHT 2 of 2 planted bugs caught, 0 false alarms" in out
    assert "masks.corner" in out
    assert [row["id"] for row in document["mutants"]] == ["guidance.odd", "masks.corner"]
    assert document["mutants"][0]["caught_by"].keys() == {"guidance.refusal"}
    # its laws look at windows of longer pyramids, too
    assert eval(document["mutants"][1]["smallest_case"], {"Case": Case}).pyramid.S == 1


def test_the_command_fails_when_a_bug_survives(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for module in ("harness.mutants", "harness.mutants._hunt"):  # who asks, and who hunts by id
        monkeypatch.setattr(f"{module}.MUTANTS", (HEALTHY,))
    assert run(monkeypatch, "--examples", "4") == 1
    out = capsys.readouterr().out
    assert "survived: masks.healthy (nothing: no law of its family broke)" in out
    assert "SURVIVED 0 of 1" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "only=nothing: names no mutant; pass one of acceptance, batch, "),
        (["--laws", "some"], "laws=some: must be one of first, family, all; pass --laws family"),
        (["--examples", "0"], "examples=0: must be 1 or more; pass --examples 16"),
        (
            ["--dtype", "int8"],
            "dtype=int8: must be one of float64, float32, bfloat16, float16, autocast-bfloat16, autocast-float16; "
            "pass --dtype float32",
        ),
        (["--device", "abacus"], "device=abacus: is not a device; pass --device cpu"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
