"""The engine that tries laws: what breaks one is simplified by the same loop, whatever source its cases come from."""

from __future__ import annotations

import pytest

from harness import build_decoder
from harness.laws import Case, Law, Subject, fixed_cases
from harness.laws._engine import CaseList, CaseSource, Scope, try_law


def breaks(subject: Subject, case: Case) -> bool:
    """Nothing of three scales or more is right."""
    assert len(case.patch_nums) < 3
    return True


LAW = Law("masks.short", "Pyramids are short.", ("decode",), breaks)
SUBJECT = Subject(build_decoder)


@pytest.mark.parametrize(
    ("source", "sides"),
    [
        (Scope(8, patch_nums=((1, 2, 3, 4), (1, 2, 4))), (1, 2, 4)),  # of the pyramids that were asked for
        (Scope(8), (1, 2, 3)),
        (CaseList(fixed_cases(16)), (1, 2, 3)),
    ],
)
def test_a_violation_ends_in_the_simplest_case_of_its_source(source: CaseSource, sides: tuple[int, ...]):
    row = try_law(LAW, SUBJECT, source)
    assert row.violation is not None
    assert row.violation.case == Case(sides, V=3, draft_len=1)


def test_without_time_the_first_case_that_breaks_stays():
    first = try_law(LAW, SUBJECT, Scope(8, shrink_s=0.0)).violation
    assert first is not None
    assert first.case != Case((1, 2, 3), V=3, draft_len=1)


def test_a_scope_in_another_dtype_is_simplified_in_it():
    row = try_law(LAW, SUBJECT, Scope(8, dtype="float32"))
    assert row.violation is not None
    assert (row.violation.case.dtype, row.violation.case.exact) == ("float32", False)


def test_progress_is_told_case_by_case_and_once_at_the_end():
    seen: list[tuple[int, bool]] = []
    row = try_law(Law("masks.fine", "All is fine.", ("decode",), lambda subject, case: True), SUBJECT, Scope(3),
                  lambda row: seen.append((row.examples, row.done)))  # fmt: skip
    assert seen == [(1, False), (2, False), (3, False), (3, True)]
    assert row.exercised == 3
