"""What laws and cases saw, as plain values that travel between processes, and their lines in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from harness.judge.verdict import Verdict

HELD = Verdict.IDENTICAL.value
PASSED = (HELD, Verdict.TIE.value, Verdict.CONSISTENT.value)
DEFECT, OPEN = Verdict.DEFECT.value, Verdict.INCONCLUSIVE.value


@dataclass(frozen=True)
class Checked:
    """What one law, or one case on digits, saw; plain values, since it travels between processes.

    Args:
        id: of the law, name of the case.
        kind: law or digits.
        statement: what holds, or what was decoded.
        watches: components that it points to.
        verdict: as results name it; empty where it does not apply.
        examples: cases, or images.
        exercised: those that were not trivial.
        refused: cases that the decoder refused.
        seconds: of all its checks.
        why: why it does not apply, or proves nothing.
        found: what broke, one clause.
        case: the smallest that breaks it.
        replay: the line that shows it again.
        known: why it is known to fail; empty where it is not.
    """

    id: str
    kind: str
    statement: str
    watches: tuple[str, ...]
    verdict: str
    examples: int = 0
    exercised: int = 0
    refused: int = 0
    seconds: float = 0.0
    why: str = ""
    found: str = ""
    case: str = ""
    replay: str = ""
    known: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Checked:
        """Return the record of plain values, of which JSON makes a list of a tuple."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**{**known, "watches": tuple(values["watches"])})

    @property
    def state(self) -> str:
        """One of held, broken, known, unproven; empty where it does not apply."""
        if self.known and self.verdict in (DEFECT, OPEN):
            return "known"
        if self.verdict == DEFECT:
            return "broken"
        return "held" if self.verdict in PASSED else "unproven" if self.verdict else ""

    @property
    def stands_still(self) -> bool:
        """Tell whether it is known to fail, and does not."""
        return bool(self.known) and self.state != "known"

    @property
    def family(self) -> str:
        """First half of the id."""
        return self.id.partition("." if self.kind == "law" else "[")[0]


def line(row: Checked) -> str:
    """Return a row of the summary in the terminal."""
    if not row.verdict:
        return f"{row.id:28s} does not apply: {row.why}"
    unit, word = ("examples", f", {row.exercised / max(1, row.examples):4.0%} not trivial, {row.refused} refused")
    if row.kind != "law":
        unit, word = "images", f", {row.verdict}"
    end = {"held": "", "unproven": ": UNPROVEN", "broken": f": BROKEN, watches {', '.join(row.watches)}"}
    said = f": fails, as is known: {row.known}" if row.state == "known" else end[row.state]
    said += f": known to fail ({row.known}), and does not" if row.stands_still else ""
    return f"{row.id:28s} {row.examples:5d} {unit}{word}{said}"
