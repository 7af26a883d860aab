"""`run_conformance` on decoders that the harness did not write: a right one passes, and every wrong one is caught."""

from __future__ import annotations

import pytest

from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.laws import LAWS, Case, Law, Report, Subject, Violation, check, run_conformance
from harness.laws._case import CHOICES, SMALL
from harness.laws._engine import fixed_cases
from harness.laws._law import NO_PARTS
from harness.models._pair import ModelPair
from harness.protocol._decoder import Settings
from tests.naive import Naive, WithParts, naive, with_parts

# quick on a decoder without a cache; tests/property runs all of them on the shipped one
END_TO_END = [law for law in LAWS if law.id not in ("acceptance.distribution", "acceptance.support", "state.exception")]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive decoder recomputes everything at every scale: leave it the smaller pyramids."""
    monkeypatch.setitem(CHOICES, "patch_nums", SMALL[:8])


def held(report: Report) -> set[str]:
    return {row.law.id for row in report.rows if row.verdict is Verdict.IDENTICAL}


@pytest.mark.slow
def test_a_decoder_with_the_end_to_end_hook_alone_is_judged_end_to_end():
    report = run_conformance(naive, examples=8, laws=END_TO_END)
    assert report.verdict is not Verdict.DEFECT, str(report)
    assert {"acceptance.token-identical", "batch.splitting", "sensitivity.label", "state.once"} <= held(report)
    skipped = {row.law.id: row.skipped for row in report.rows if row.verdict is None}
    assert skipped["masks.definition"] == NO_PARTS
    assert skipped["positions.trace"] == "no intermediates"
    assert skipped["acceptance.honest"] == "no rounds in the trace"
    assert held(report).isdisjoint(skipped)


def test_a_decoder_with_components_is_also_judged_component_by_component():
    laws = [law for law in LAWS if law.family in ("masks", "guidance", "randomness", "positions")]
    report = run_conformance(with_parts, examples=8, laws=laws)
    assert report.verdict is not Verdict.DEFECT, str(report)
    assert {"masks.definition", "masks.dependency", "guidance.formula", "randomness.boundary"} <= held(report)
    assert "parts without build_combined_query" in str(report)


CAUGHT = {
    "trusting": "acceptance.token-identical",
    "one-scale": "state.once",
    "deaf": "sensitivity.label",
    "unguided": "sensitivity.cfg",
    "crashing": "batch.splitting",
    "stale-f-hat": "state.once",
}


@pytest.mark.parametrize(("bug", "law"), CAUGHT.items(), ids=CAUGHT.keys())
def test_a_wrong_decoder_is_caught_end_to_end(bug: str, law: str):
    laws = [each for each in LAWS if each.id == law]
    report = run_conformance(lambda models, settings: Naive(models, settings, bug), examples=16, laws=laws)
    assert report.verdict is Verdict.DEFECT, str(report)
    assert f"law {law} is broken" in str(report)


@pytest.mark.parametrize(("bug", "law"), [("odd-rows", "guidance.refusal"), ("corner", "masks.definition")])
def test_a_wrong_component_is_caught_where_the_decode_does_not_show_it(bug: str, law: str):
    def factory(models: ModelPair, settings: Settings) -> Naive:
        return WithParts(models, settings, bug)

    laws = [each for each in LAWS if each.id in (law, "acceptance.token-identical")]
    report = run_conformance(factory, examples=8, laws=laws)
    assert [violation.law.id for violation in report.violations] == [law]


@pytest.mark.parametrize(
    ("trivial", "most", "verdict"),
    [(0, 8, Verdict.IDENTICAL), (9, 16, Verdict.IDENTICAL), (99, 32, Verdict.INCONCLUSIVE)],
)
def test_a_law_that_was_trivial_by_chance_is_tried_in_more_cases(trivial: int, most: int, verdict: Verdict):
    seen: list[Case] = []

    def late(subject: Subject, case: Case) -> bool:
        seen.append(case)
        return len(seen) > trivial

    row = run_conformance(naive, examples=8, laws=[Law("batch.late", "Late.", ("decode",), late)]).rows[0]
    assert (row.verdict, row.examples) == (verdict, len(seen))
    assert most - 8 < len(seen) <= most


@pytest.mark.slow
def test_a_violation_replays_from_what_it_prints():
    def factory(models: ModelPair, settings: Settings) -> Naive:
        return Naive(models, settings, "deaf")

    law = next(law for law in LAWS if law.id == "acceptance.token-identical")
    report = run_conformance(factory, examples=8, laws=[law])
    printed = str(report).partition("replay:  ")[2].splitlines()[0]
    assert printed.startswith(
        "from harness.laws import Case, check; check('acceptance.token-identical', FACTORY, Case("
    )
    with pytest.raises(Violation, match=r"law acceptance\.token-identical is broken"):
        exec(printed, {"FACTORY": factory})
    assert check("acceptance.token-identical", naive, report.violations[0].case) in (True, False)


class Refusing(Naive):
    def decode(self, request: object, noise: object) -> object:  # type: ignore[override]
        raise InputError("labels", 0, "are never good enough", "try another decoder")


class Boasting(Naive):
    contract = "better-than-identical"


class Lossy(Naive):
    contract = "quality-preserving"


def test_a_decoder_that_refuses_everything_proves_nothing():
    report = run_conformance(Refusing, examples=3, laws=[law for law in LAWS if law.family == "batch"])
    assert report.verdict is Verdict.INCONCLUSIVE
    assert all(row.refused == 3 and not row.examples for row in report.rows)


def test_an_unknown_contract_is_no_pass():
    with pytest.raises(InputError, match=r"implementation=.*:Boasting: built a decoder that claims '.*', not"):
        run_conformance(Boasting, examples=2, laws=LAWS[:1])


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (lambda models, settings: object(), "built a object, which has no decode"),
        (lambda models, settings: None, "built a NoneType, which has no decode"),
        (
            lambda models, settings: 1 / 0,
            r"failed to build a decoder \(ZeroDivisionError: division by zero in <lambda>, test_conformance.py:\d+\)",
        ),
        (lambda models, settings: len(1), r"failed to build a decoder \(TypeError: .*\)"),
    ],
)
def test_a_factory_that_builds_no_decoder_is_refused(factory: object, said: str):
    with pytest.raises(InputError, match=f"implementation={__name__}:<lambda>: {said}.*; see docs/own-decoder.md"):
        run_conformance(factory, examples=2)


def test_a_claim_of_quality_alone_is_not_held_to_the_others():
    report = run_conformance(Lossy, examples=2, laws=[law for law in LAWS if law.family == "batch"])
    assert report.verdict is Verdict.INCONCLUSIVE  # nothing applied, and that is not a pass
    assert {row.skipped for row in report.rows} == {"contract quality-preserving"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"implementation": 7}, "implementation=int: must be a factory"),
        ({"implementation": "nowhere:x"}, "implementation=nowhere:x: cannot be imported"),
        ({"implementation": naive, "examples": 0}, "examples=0: must be 1 or more"),
    ],
)
def test_bad_input_is_refused(arguments: dict, said: str):
    with pytest.raises(InputError, match=said):
        run_conformance(**arguments)


def test_an_unknown_law_is_refused():
    with pytest.raises(InputError, match=r"law=masks\.nothing: is not a law; pass one of acceptance\."):
        check("masks.nothing", naive, Case())


def test_cases_are_a_function_of_count_and_seed_and_smallest_first():
    assert fixed_cases(20, 1) == fixed_cases(20, 1)
    assert fixed_cases(20, 1) != fixed_cases(20, 2)
    sizes = [case.pyramid.L for case in fixed_cases(20)]
    assert sizes == sorted(sizes)


def test_a_case_is_its_own_repr():
    for case in fixed_cases(20):
        assert eval(repr(case), {"Case": Case}) == case
    assert repr(Case()) == "Case()"


def test_a_named_factory_is_named_in_the_replay():
    assert Subject(naive).name == "'tests.naive:naive'"
    assert Subject(lambda models, settings: Naive(models, settings, "deaf")).name == "FACTORY"
