"""What one setting of a run did over all its requests.

Promise: every count is a sum over judgements.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from harness.files import finite
from harness.judge import Distance, Divergence, Judgement, Verdict, Wealth, worst_verdict
from harness.protocol import Contract, Request, Settings
from harness.runs._records import JudgedRow
from harness.wording import count_of

# What a run counts, as results name it: draws = identical + ties + wrong_tokens + unclaimed.
COUNTS = ("images", "draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects")
MOST_LISTED = 20  # defects of a decode


@dataclass
class SettingResult:
    """What one setting did over all requests."""

    settings: Settings  # which
    contract: Contract  # what the decoder claims
    rows: list[JudgedRow] = field(default_factory=list)  # what each request came to, in the order of the plan
    draft: str = ""  # which of a design's drafts
    # what bets against the target's likelihood came to (contract B), by guidance and filter of the requests
    bets: list[Wealth] = field(default_factory=list)

    @property
    def judgements(self) -> list[Judgement]:
        """The judgement on every request that was not refused."""
        return [row.judgement for row in self.rows if not row.refused]

    @property
    def is_law_shown(self) -> bool:
        """Whether its own tokens would have shown another law than the target's, had there been one."""
        return any(wealth.verdict is Verdict.CONSISTENT for wealth in self.bets)

    @property
    def refused(self) -> int:
        """Requests that the decoder refused."""
        return sum(bool(row.refused) for row in self.rows)

    @property
    def seconds(self) -> float:
        """Seconds of the decodes."""
        return sum(row.seconds for row in self.rows)

    @property
    def reference_seconds(self) -> float:
        """Seconds of the reference's decodes of the same requests."""
        return sum(row.reference_seconds for row in self.rows)

    def total(self, name: str) -> int:
        """Return the sum of a count of `Judgement` over all judgements."""
        return sum(judgement.count(name) for judgement in self.judgements)

    def counted(self, name: str) -> list[Any]:
        """Return a list of `Counts`, of every image."""
        return list(chain.from_iterable(getattr(row.counts, name) for row in self.rows if row.counts))

    @property
    def target_calls(self) -> list[int]:
        """Target forward passes of every image."""
        return self.counted("target_calls")

    @property
    def target_rows(self) -> list[int]:
        """Positions that the target computed, of every image."""
        return self.counted("target_rows")

    @property
    def rounds(self) -> list[int]:
        """Number of rounds of every image."""
        return [len(accepted) for accepted in self.accepted_scales]

    @property
    def accepted_scales(self) -> list[list[int]]:
        """Accepted scales of every round of every image."""
        return self.counted("accepted_scales")

    @property
    def first(self) -> tuple[JudgedRow, Divergence] | None:
        """The first defect, else the first tie: that of the earliest scale, whatever batches the run was cut into."""
        for name in ("defects", "ties"):
            found = [(row, listed[0]) for row in self.rows if (listed := getattr(row.judgement, name))]
            if found:
                return min(found, key=lambda of: of[1].scale)
        return None

    @property
    def distances(self) -> list[Distance]:
        """Distance of every image from the sequential one, where tokens are not claimed."""
        return list(chain.from_iterable(judgement.distances for judgement in self.judgements))

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the requests."""
        return worst_verdict([judgement.verdict for judgement in self.judgements])

    def as_dict(self) -> dict[str, object]:
        """Return what ``verify --json`` says of it; the first defects of every decode, all ties."""
        return {
            "setting": vars(self.settings),
            "draft": self.draft,
            "refused": self.refused,
            "contract": self.contract,
            "verdict": self.verdict.value,
            **{name: self.total(name) for name in COUNTS},
            "ties_listed": [tie.as_dict() for judgement in self.judgements for tie in judgement.ties],
            "defects_listed": [d.as_dict() for judgement in self.judgements for d in judgement.defects[:MOST_LISTED]],
            **{name: getattr(self, name) for name in ("target_calls", "target_rows", "rounds", "accepted_scales")},
            "judged": [
                {"request": row.task, **_outcome(row), "refused": row.refused, "seconds": row.seconds}
                for row in self.rows
            ],
            **({"bets": [wealth.as_dict() for wealth in self.bets]} if self.bets else {}),
            "distances": [finite(vars(distance)) for distance in self.distances],
            "seconds": self.seconds,
            "reference_seconds": self.reference_seconds,
        }


def _outcome(row: JudgedRow) -> dict[str, object]:
    return {"verdict": row.judgement.verdict.value, **{name: row.judgement.count(name) for name in COUNTS}}


def row_values(row: JudgedRow, request: Request) -> dict[str, object]:
    """Return one request and what came of it, as a row of a table."""
    return {
        "seed": request.seed,
        "labels": ",".join(map(str, request.labels or ())),
        "cfg": request.cfg,
        **_outcome(row),
        "refused": row.refused,
        "target_calls": sum(row.counts.target_calls) if row.counts else 0,
        "seconds": row.seconds,
        "reference_seconds": row.reference_seconds,
    }


def counted(totals: Mapping[str, int]) -> str:
    """Return every count of `COUNTS` in words."""
    counts = [f"{totals['identical']} identical", count_of(totals["ties"], "tie")]
    counts.append(count_of(totals["wrong_tokens"], "wrong token"))
    counts += [f"{totals['unclaimed']} not claimed"] if totals["unclaimed"] else []
    return (
        f"{count_of(totals['images'], 'decode')}, {count_of(totals['draws'], 'draw')} compared, {', '.join(counts)}; "
        f"{count_of(totals['wrong_tensors'], 'wrong tensor')}; {count_of(totals['defects'], 'defect')}"
    )


def counted_briefly(totals: Mapping[str, int]) -> str:
    """Return the same without what is 0."""
    words = (("identical", "identical"), ("ties", "tied"), ("wrong_tokens", "wrong"), ("unclaimed", "not claimed"))
    counts = [f"{totals[name]} {word}" for name, word in words if totals[name]]
    return ", ".join([count_of(totals["draws"], "draw"), *counts, count_of(totals["defects"], "defect")])
