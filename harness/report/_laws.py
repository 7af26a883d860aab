"""What laws and cases saw: records that travel between processes, and their lines in the terminal."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from harness.judge import Verdict
from harness.schema import record_of


@dataclass(frozen=True)
class CheckRow:
    """What one law, or one case on digits, saw."""

    id: str  # of the law, name of the case
    kind: str  # law or digits
    statement: str  # what holds, or what was decoded
    watches: tuple[str, ...]  # components that it points to
    verdict: Verdict | None  # None where it does not apply
    examples: int = 0  # cases, or images
    exercised: int = 0  # those that were not trivial
    refused: int = 0  # cases that the decoder refused
    seconds: float = 0.0  # of all its checks
    why: str = ""  # why it does not apply, or proves nothing
    finding: str = ""  # what is broken, one clause
    case: str = ""  # the smallest that breaks it
    replay: str = ""  # the line that shows it again
    known: str = ""  # why it is known to fail; empty where it is not

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return record_of(cls, json.loads(text))

    @property
    def state(self) -> str:
        """One of held, broken, known, unproven; empty where it does not apply."""
        if self.verdict is None:
            return ""
        if not self.verdict.exit_status:
            return "held"
        if self.known:
            return "known"
        return "broken" if self.verdict is Verdict.DEFECT else "unproven"

    @property
    def fails_no_more(self) -> bool:
        return bool(self.known) and self.state != "known"

    @property
    def family(self) -> str:
        return self.id.partition("." if self.kind == "law" else "[")[0]


def check_line(row: CheckRow) -> str:
    if row.verdict is None:
        return f"{row.id:28s} does not apply: {row.why}"
    counts = f"images, {row.verdict}"
    if row.kind == "law":
        share = row.exercised / max(1, row.examples)
        counts = f"examples, {share:4.0%} not trivial, {row.refused} refused"
    ends = {
        "held": "", "unproven": ": UNPROVEN", "broken": f": BROKEN, watches {', '.join(row.watches)}",
        "known": f": fails, as is known: {row.known}",
    }  # fmt: skip
    end = ends[row.state] + (f": known to fail ({row.known}), and does not" if row.fails_no_more else "")
    return f"{row.id:28s} {row.examples:5d} {counts}{end}"
