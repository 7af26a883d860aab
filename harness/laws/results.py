"""What laws saw of a decoder, and the verdict that follows.

Promise: nothing passes by not having been tried: a law that was never exercised, or mostly refused, is INCONCLUSIVE.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.judge.verdict import Verdict
from harness.laws.law import Law, Violation


@dataclass
class LawResult:
    """What one law saw.

    Args:
        law: which.
        examples: cases in which it was checked.
        exercised: those that were not trivial for it.
        refused: cases that the decoder refused with an `InputError`.
        skipped: why it does not apply to the decoder, or to some case; empty when it always does.
        violation: the first one.
        seconds: of all its checks.
        why: what the last refusal said.
        done: no more cases follow.
    """

    law: Law
    examples: int = 0
    exercised: int = 0
    refused: int = 0
    skipped: str = ""
    violation: Violation | None = None
    seconds: float = 0.0
    why: str = ""
    done: bool = False

    @property
    def verdict(self) -> Verdict | None:
        """DEFECT, IDENTICAL (it held), INCONCLUSIVE (never exercised, or mostly refused), None: not applicable."""
        if self.violation is not None:
            return Verdict.DEFECT
        if self.skipped and not self.examples:
            return None
        return Verdict.IDENTICAL if self.exercised and self.refused <= self.examples else Verdict.INCONCLUSIVE

    def __str__(self) -> str:
        most = "mostly refused" if self.exercised else "never exercised"
        word = {None: f"not applicable: {self.skipped}", Verdict.DEFECT: "BROKEN", Verdict.IDENTICAL: "held"}
        refused = f": {self.refused} cases refused, {self.why}" if self.refused else ""
        said = word.get(self.verdict, most + refused)
        counts = f"{self.examples:5d} examples {self.exercised:5d} exercised {self.refused:4d} refused"
        return f"{self.law.id:28s} {counts} {self.seconds:7.2f} s  {said}"


@dataclass
class Report:
    """What all laws saw; its `str` is a table and the first violation."""

    rows: list[LawResult] = field(default_factory=list)

    @property
    def violations(self) -> list[Violation]:
        """The first violation of every broken law."""
        return [row.violation for row in self.rows if row.violation is not None]

    @property
    def verdict(self) -> Verdict:
        """DEFECT if a law is broken, INCONCLUSIVE if one was never exercised or none applied, else IDENTICAL."""
        verdicts = [row.verdict for row in self.rows if row.verdict is not None]
        if Verdict.DEFECT in verdicts:
            return Verdict.DEFECT
        return Verdict.IDENTICAL if verdicts and Verdict.INCONCLUSIVE not in verdicts else Verdict.INCONCLUSIVE

    def __str__(self) -> str:
        applied = [row for row in self.rows if row.verdict is not None]
        held = sum(row.verdict is Verdict.IDENTICAL for row in applied)
        lines = [str(row) for row in self.rows]
        lines += [f"\n{violation}" for violation in self.violations[:1]]
        lines += [
            f"{self.verdict.value} {held} of {len(applied)} laws held, {len(self.rows) - len(applied)} not applicable, "
            f"{sum(row.refused for row in self.rows)} cases refused"
        ]
        return "\n".join(lines)
