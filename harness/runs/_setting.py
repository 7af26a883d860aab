"""What one setting of a run did over all its requests; and how a result is shown: in words, as JSON, in notebooks.

Promise: every count is a sum over judgements. The JSON document, which docs/runs.md describes, and the fragment for
notebooks are what the result (`Verification`) says of itself, and complete.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import chain
from typing import Any

from harness.errors import one_line, shortened
from harness.files import finite
from harness.judge import CodeLine, Distance, Divergence, Judgement, Verdict, Wealth, worst_verdict
from harness.protocol import Contract, Request, Settings, request_values
from harness.provenance import versions
from harness.rounding import precision
from harness.runs._identity import DECODER, HARNESS
from harness.runs._records import JudgedRow
from harness.wording import count_of

# What a run counts, as results name it: draws = identical + ties + wrong_tokens + unclaimed.
COUNTS = ("images", "draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects")
MOST_LISTED = 20  # defects of a decode


@dataclass
class SettingResult:
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
    def refused(self) -> int:
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
                return min(found, key=lambda of: of[1].order)
        return None

    @property
    def distances(self) -> list[Distance]:
        """Distance of every image from the sequential one, where tokens are not claimed."""
        return list(chain.from_iterable(judgement.distances for judgement in self.judgements))

    @property
    def verdict(self) -> Verdict:
        return worst_verdict([judgement.verdict for judgement in self.judgements])

    def as_dict(self) -> dict[str, object]:
        """Return what ``verify --json`` says of it; the first defects of every decode, all ties."""
        return {
            "setting": vars(self.settings),
            **{name: getattr(self, name) for name in ("draft", "refused", "contract", "seconds", "reference_seconds")},
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
    counts += [f"{totals['unclaimed']} that differ and are not claimed"] if totals["unclaimed"] else []
    return (
        f"{count_of(totals['images'], 'decode')}, {count_of(totals['draws'], 'draw')} compared, {', '.join(counts)}; "
        f"{count_of(totals['wrong_tensors'], 'wrong tensor')}; {count_of(totals['defects'], 'defect')}"
    )


SCHEMA = 2  # docs/runs.md describes it; 1 was that of version 0.1, without requests and what the run is of
# what the document says of a run by the names that the run has for it
AS_IT_IS = ("models", "inconclusive", "so_far", "remarks", "changes", "compared", "not_compared", "covers", "seconds",
            "decode_seconds", "wall_seconds", "alone")  # fmt: skip
MOST = 600  # characters of a text from outside
# Readable on light and dark; the verdict's word says the same as its colour.
COLOURS = dict.fromkeys(Verdict, "#1a7f37") | {Verdict.DEFECT: "#d1242f", Verdict.INCONCLUSIVE: "#9a6700"}


def fragment(run: Any) -> str:
    """Return a fragment for notebooks: verdict, a row a setting, the first divergence and what repeats it."""
    head = "".join(f"<th>{word.replace('_', ' ')}</th>" for word in ("setting", "verdict", *COUNTS))
    rows = "".join(
        f"<tr><td>{_text(str(setting.settings))}</td><td>{setting.verdict.value}</td>"
        + "".join(f"<td>{setting.total(name):,}</td>" for name in COUNTS)
        + "</tr>"
        for setting in run.settings
    )
    word = f'<strong style="color:{COLOURS[run.verdict]}">{run.verdict.value}</strong>'
    parts = [f"<p>{word} {_text(run.summary)}</p>"]
    parts += [f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"] if rows else []
    lines = [f"inconclusive: {reason}" for reason in run.inconclusive if run.verdict is not Verdict.DEFECT]
    lines += [run.exercised.clause, *(f"remark: {remark}" for remark in run.remarks)]
    if first := run.first_divergence:
        lines.append(f"{run.first_word}: {first}")
    parts += [f"<p>{_text(line)}</p>" for line in lines if line]
    parts += [f"<pre>{_text(run.alone)}</pre>"] if run.alone else []
    return f"<div>{''.join(parts)}</div>"


def document(run: Any) -> dict[str, object]:
    """Return what ``verify --json`` writes: counts are totals, lists of images."""
    first, by_image = run.first_divergence, ("target_calls", "target_rows", "rounds", "accepted_scales")
    found = {"laws": run.laws, "claims": run.claims}
    of = {
        **(run.record.as_dict() if run.record else {}),
        **{name: part.as_dict() for name, part in found.items() if part is not None},
        **({"quality": run.quality.values()} if run.quality else {}),
        **({"batch": run.batches} if run.batches else {}),
    }
    return {
        "schema": SCHEMA,
        "contract": run.contract,
        "verdict": run.verdict.value,
        **run.totals,
        "first_divergence": first.as_dict() if first else None,
        "line": vars(run.line) if isinstance(run.line, CodeLine) else run.line or None,
        "tested": run.tested or None,
        "against": run.against or None,
        **{name: getattr(run, name) for name in AS_IT_IS},
        **{name: [each for setting in run.settings for each in getattr(setting, name)] for name in by_image},
        "counted_by": DECODER if run.is_its_word else HARNESS,
        "exercised": run.exercised.as_dict(),
        "coverage": run.coverage.as_dict(),
        "device": str(run.device),
        "dtype": run.modes[0],
        "draft_dtype": run.modes[1],
        "precision": precision(),
        "budget": finite(vars(run.budget)) if run.budget else None,
        "versions": versions(),
        "whole": run.is_whole,
        "run": of,  # what repeats it, and what was found besides its decodes
        "requests": [request_values(task.request) for task in run.plan.tasks],
        "settings": [setting.as_dict() for setting in run.settings],
    }


def _text(words: str) -> str:
    return escape(shortened(one_line(words), MOST))
