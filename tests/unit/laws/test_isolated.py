"""A broken law points to one part where the other laws, or a traceback, isolate one."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from harness.judge._part_law import PartVerdict
from harness.laws._case import Case
from harness.laws._catalogue import LAWS
from harness.laws._conformance import LawWork, inspect_parts
from harness.laws._engine import CaseList, LawResult, Report, fixed_cases, isolated_parts, most_specific, try_law
from harness.laws._few_cases import summed_up
from harness.laws._law import Law, Subject, Violation
from harness.mutants import masks, positions
from harness.mutants._mutant import parts

CASES = fixed_cases(2, 2)


def law(*watches: str) -> Law:
    return replace(LAWS[0], id=f"a.{'-'.join(watches)}", watches=watches)


def row(*watches: str, broken: bool = True, part: str = "") -> LawResult:
    of = law(*watches)
    violation = Violation(of, Case(), "no", part=part) if broken else None
    return LawResult(of, 1, 1, violation=violation)


WIDE = row("query", "mask", "cache")


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ([], ("query", "mask", "cache")),
        ([row("mask")], ("mask",)),
        ([row("mask", "guide")], ("mask",)),
        ([row("draw")], ("query", "mask", "cache")),
        ([row("mask", broken=False), row("query", broken=False)], ("cache",)),
        ([row(*WIDE.law.watches, broken=False)], ("query", "mask", "cache")),
        ([row(part, broken=False) for part in WIDE.law.watches], ("query", "mask", "cache")),
    ],
)
def test_a_law_points_to_what_the_others_leave(others: list[LawResult], named: tuple[str, ...]):
    assert isolated_parts(WIDE, [WIDE, *others]) == named


def test_a_part_that_its_own_law_only_met_trivially_is_not_cleared():
    trivial = replace(row("mask", broken=False), exercised=0)
    assert isolated_parts(row("mask", "cache"), [trivial]) == ("mask", "cache")


def test_the_most_specific_law_comes_first_and_a_traceback_before_all():
    crashed = row("query", "mask", "cache", "draw", part="draw")
    rows = [WIDE, row("mask", "cache"), crashed, row("mask", broken=False)]
    assert most_specific(rows) == [crashed, rows[1], WIDE]
    assert Report(rows).violations[0] is crashed.violation
    assert isolated_parts(crashed, rows) == ("draw",)
    assert pickle.loads(pickle.dumps(crashed.violation)).part == "draw"


def no_draw(*_: Any) -> Tensor:
    raise IndexError("list index out of range")


def tried(bug: Any, *names: str) -> list[LawResult]:
    return [try_law(each, Subject(bug), CaseList(CASES)) for each in LAWS if each.id in names]


def test_a_crash_in_a_law_is_a_crash_with_its_line_and_part():
    (found,) = tried(parts(draw=no_draw), "acceptance.token-identical")
    assert found.violation is not None
    assert found.violation.part == "crash"
    where = r"IndexError: list index out of range in no_draw, test_isolated.py:\d+: part draw"
    assert re.fullmatch(f"the decoder raised {where}", found.violation.found)


def test_a_law_that_judges_a_decode_has_the_judges_component():
    (found,) = tried(positions.OFFSET, "acceptance.token-identical")
    assert found.violation is not None
    assert found.violation.part == "positions"
    assert summed_up([found], 2).broken[0].component == "positions"


def test_a_wrong_mask_is_called_attention_mask_whatever_else_it_breaks():
    rows = tried(masks.CORNER, "acceptance.token-identical", "masks.definition", "batch.permutation", "masks.future")
    assert len([each for each in rows if each.violation]) > 1
    found = summed_up(rows, 2).broken
    assert (found[0].component, found[0].clause.partition(":")[0]) == ("attention_mask", "law masks.definition")
    future = next(each for each in found if "masks.future" in each.clause)
    assert future.component == "attention_mask"


def test_parts_have_a_row_of_what_is_wrong_with_them_and_none_of_what_is_not():
    rows = [
        each for each in inspect_parts(LawWork(masks.CORNER, (), CaseList(CASES))) if each.verdict is PartVerdict.BROKEN
    ]
    assert {each.part for each in rows if each.law == "positions.rows"} == {"attention_mask"}  # it watches three
