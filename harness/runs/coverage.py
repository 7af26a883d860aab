"""What a run exercised: rounds by what became of them, and the claims that nothing has tried.

Promise: counted from the rounds that the decoder showed, by their own numbers alone; a claim that no round exercised is
named, never passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.protocol.trace import Round, Trace
from harness.wording import count_of


@dataclass
class Coverage:
    """Counts over all decodes of a run.

    Args:
        decodes: requests that were decoded.
        refused: requests and settings that the decoder refused.
        reused: decodes by a decoder that had decoded another request before.
        rounds: of all images.
        judged: rounds in which the target judged a draft.
        accepted: rounds by number of drafted scales that stood.
        whole: rounds whose draft of several scales stood whole.
        partial: rounds of which some drafted scales stood, and not all.
        corrected: rounds that replaced a drafted scale.
        late: those behind a scale that stood: another row of the window than its first.
        bonus: rounds that finished a scale behind the drafted ones.
        diverged: decodes whose images went on from different scales.
        apart: rounds with a bonus scale in such a decode.
        final: final rounds that drafted the last scale and kept it.
    """

    decodes: int = 0
    refused: int = 0
    reused: int = 0
    rounds: int = 0
    judged: int = 0
    accepted: Counter[int] = field(default_factory=Counter)
    whole: int = 0
    partial: int = 0
    corrected: int = 0
    late: int = 0
    bonus: int = 0
    diverged: int = 0
    apart: int = 0
    final: int = 0

    @classmethod
    def of(cls, trace: Trace) -> Coverage:
        """Count one decode."""
        made, diverged = cls(decodes=1), len({tuple(turn.first for turn in rounds) for rounds in trace.rounds}) > 1
        made.diverged = int(diverged)
        for rounds in trace.rounds:
            for turn in rounds:
                made._add_round(turn)
                made.apart += diverged and turn.bonus and turn.drafted > 0
            made.final += bool(rounds) and rounds[-1].accepted == rounds[-1].drafted > 0 and not rounds[-1].bonus
        return made

    def add(self, decodes: Sequence[Coverage]) -> None:
        """Add the decodes of one decoder, each with its counts. Effects: on all counts."""
        self.reused += max(0, len(decodes) - 1)
        for one in decodes:
            for name, count in vars(one).items():
                setattr(self, name, getattr(self, name) + count)

    def _add_round(self, turn: Round) -> None:
        self.rounds += 1
        if not turn.drafted:  # the target decided alone: nothing stood or fell, and nothing stood before a bonus scale
            return
        self.judged += turn.target_rows > 0
        self.accepted[turn.accepted] += 1
        self.whole += turn.accepted == turn.drafted > 1
        self.partial += 0 < turn.accepted < turn.drafted
        self.corrected += turn.corrected
        self.late += turn.corrected and turn.accepted > 0
        self.bonus += turn.bonus

    def never(self, bonus: bool = True) -> list[str]:
        """Return the claims that nothing exercised.

        Where the rounds show that the target never judges a draft there are none about what stands and falls.

        Args:
            bonus: the decoder was asked for bonus scales; one that refuses them claims none.
        """
        claims = CLAIMS if self.judged or not self.rounds else {REUSED: CLAIMS[REUSED]}
        return [word for word, exercised in claims.items() if not exercised(self) and (bonus or word not in BONUS)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coverage:
        """Return the counts that `as_dict` made these values of. Raises `TypeError` for other names."""
        # files of before have no `judged`: they claim what they claimed
        values = {"judged": values.get("rounds", 0), **values}
        return cls(**{**values, "accepted": Counter({int(k): n for k, n in values["accepted"].items()})})

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {**vars(self), "accepted": {str(k): self.accepted[k] for k in sorted(self.accepted)}}

    def __str__(self) -> str:
        by = ", ".join(f"{count}: {self.accepted[count]}" for count in sorted(self.accepted))
        return (
            f"{count_of(self.rounds, 'round')} by accepted scales {{{by}}}; "
            f"{count_of(self.whole, 'draft')} of several scales kept whole, "
            f"{self.corrected} corrected ({self.late} behind kept scales), {self.bonus} with a bonus scale "
            f"({self.apart} in batches that part ways); {self.diverged} of "
            f"{count_of(self.decodes, 'decode')} part ways, {self.reused} by a decoder used before; "
            f"{self.refused} refused"
        )


REUSED = "one decoder for several requests"
BONUS = ("a bonus scale", "a bonus scale in a batch that parts ways")
CLAIMS: dict[str, Callable[[Coverage], int]] = {
    "a first drafted scale that falls": lambda c: c.accepted[0],
    "a draft of several scales that stands whole": lambda c: c.whole,
    "a correction behind scales that stand": lambda c: c.late,
    BONUS[0]: lambda c: c.bonus,
    "images of one batch that part ways": lambda c: c.diverged,
    BONUS[1]: lambda c: c.apart,
    REUSED: lambda c: c.reused,
}
