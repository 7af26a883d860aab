"""One law or one case, checked and recorded.

Promise: nothing passes by not having been tried. What a check saw lies in its item's stash, however it ends.
"""

from __future__ import annotations

import pytest

from harness.errors import InputError, one_line
from harness.judge.verdict import Verdict
from harness.laws.conformance import explore
from harness.laws.law import Law
from harness.laws.results import LawResult
from harness.plugin.asked import Asked
from harness.plugin.digits import DigitsCase
from harness.plugin.verifying import told_of, verified
from harness.report.laws import Checked
from harness.report.terminal import repeated_by, summary
from harness.runs.result import Verification

SEEN = pytest.StashKey[Checked]()
PASSED = (Verdict.IDENTICAL, Verdict.TIE, Verdict.CONSISTENT)


class Unproven(AssertionError):  # noqa: N818
    """Something was checked, and nothing follows: it was never exercised, or most of its cases were refused."""


class Struck(AssertionError):  # noqa: N818
    """What is known to fail cannot: it does not apply to this decoder."""


class WrongOnDigits(AssertionError):  # noqa: N818
    """A verification found a defect; the message is what `verify` prints."""


def check_law(law: Law, asked: Asked, stash: pytest.Stash) -> None:
    """Check a law in as many cases as were asked for.

    Raises:
        Violation: it is broken.
        Unproven: it was never exercised, or mostly refused.
        Struck: it is known to fail, and does not apply.

    Effects: skips the test where the law does not apply to the decoder; what was seen, in `stash`.
    """
    __tracebackhide__ = True
    row = explore(law, asked.subject, asked.scope_of(law), _unseen)
    stash[SEEN] = _of_law(row, asked)
    if row.violation is not None:
        raise row.violation
    if row.verdict is None:
        _strike(law.id, row.skipped, asked)
        pytest.skip(f"does not apply: {row.skipped}")
    if row.verdict is Verdict.INCONCLUSIVE:
        raise Unproven(f"law {law.id} is unproven: {_why(row)}")


def check_digits(case: DigitsCase, asked: Asked, stash: pytest.Stash) -> None:
    """Verify one setting on digits.

    Raises:
        WrongOnDigits: a defect.
        Unproven: nothing was drafted or compared.
        Struck: the case is known to fail, and is refused.
        InputError: the decoder refuses a plain draft length or a request.

    Effects: skips the test where the decoder refuses a schedule or a bonus scale; what was seen, in `stash`.
    """
    __tracebackhide__ = True
    try:
        result = verified(case, asked)
    except InputError as error:
        if not (case.may_be_refused and error.name in ("draft_len", "bonus", "settings")):
            raise
        stash[SEEN] = Checked(case.name, "digits", str(case.settings), ("decode",), "", why=str(error))
        _strike(case.name, str(error), asked)
        pytest.skip(f"refused: {error}")
    stash[SEEN] = _of_digits(case, result, asked)
    if result.verdict is Verdict.DEFECT:
        raise WrongOnDigits(told_of(result))
    if result.verdict not in PASSED:
        raise Unproven(told_of(result))


def _strike(name: str, why: str, asked: Asked) -> None:
    """Refuse what is known to fail, and cannot. Raises `Struck`."""
    if name in asked.known:
        raise Struck(f"{name} is known to fail ({asked.known[name]}), and does not apply ({why}): strike it")


def _unseen(row: LawResult) -> None:
    """Show nothing: pytest says how far it is."""


def _why(row: LawResult) -> str:
    if row.refused > row.examples:
        return f"{row.refused} cases refused, {row.examples} decoded; the last refusal: {row.why}"
    return f"{row.examples} examples, and every one was trivial: nothing was tested"


def _of_law(row: LawResult, asked: Asked) -> Checked:
    found = row.violation
    return Checked(
        row.law.id, "law", row.law.statement, row.law.watches, row.verdict.value if row.verdict else "",
        examples=row.examples, exercised=row.exercised, refused=row.refused, seconds=row.seconds,
        why=row.skipped if row.verdict is None else "" if row.verdict in PASSED or found else _why(row),
        found=one_line(found.found) if found else "", case=repr(found.case) if found else "",
        replay=found.replay if found else "", known=asked.known.get(row.law.id, ""),
    )  # fmt: skip


def _of_digits(case: DigitsCase, result: Verification, asked: Asked) -> Checked:
    first, wrong = result.first_divergence, result.verdict is Verdict.DEFECT
    return Checked(
        case.name, "digits", f"{case.settings} on digits: {summary(result)}",
        (first.component,) if first and wrong else ("decode",), result.verdict.value,
        examples=result.images, exercised=result.images, seconds=result.wall_seconds,
        why="; ".join(result.inconclusive), found=str(first) if first and wrong else "",
        replay=repeated_by(result) if wrong else "", known=asked.known.get(case.name, ""),
    )  # fmt: skip
