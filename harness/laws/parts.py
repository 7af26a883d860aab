"""The parts of a decoder that shows them under the harness's own names, law by law.

Promise: the same rows as of published code (`adapters.probe`): a part, a law, a verdict, what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

from harness.adapters.probe import ABSENT, BROKEN, HELD, PartLaw
from harness.judge.verdict import Verdict
from harness.laws.case import Case
from harness.laws.catalogue import LAWS
from harness.laws.law import Law, Subject
from harness.laws.listed import run_law
from harness.laws.results import LawResult
from harness.speculative.parts import Parts

NAMES = tuple(field.name for field in fields(Parts))


def part_laws() -> list[Law]:
    """Return the laws that ask parts."""
    return [law for law in LAWS if set(law.watches) & set(NAMES) and "decode" not in law.watches]


def inspect_parts(
    subject: Subject, tried: Sequence[Case], progress: Callable[[], None] = lambda: None
) -> list[PartLaw]:
    """Ask every law of parts; return a row a part and law. `progress` is called after every law."""
    rows = []
    for law in part_laws():
        result = run_law(law, subject, tried)
        rows += [_row(part, result) for part in law.watches if part in NAMES]
        progress()
    return sorted(rows, key=lambda row: NAMES.index(row.part))


def _row(part: str, result: LawResult) -> PartLaw:
    verdict, found = HELD, ""
    if result.violation is not None:
        verdict, found = BROKEN, f"{result.violation.found}, at {result.violation.case!r}"
    elif result.verdict is not Verdict.IDENTICAL:
        verdict, found = ABSENT, result.skipped or f"never exercised ({result.refused} cases refused)"
    return PartLaw(part, result.law.id, result.law.statement, verdict, found)
