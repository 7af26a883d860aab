"""How the result of a run (`Verification`) is shown: as the JSON document, and as a fragment for notebooks.

Promise: either is what the result says of itself, and complete; docs/runs.md describes the document.
"""

from html import escape
from typing import Any

from harness.errors import one_line, shortened
from harness.files import finite
from harness.judge import CodeLine, Verdict
from harness.protocol import request_values
from harness.provenance import versions
from harness.rounding import precision
from harness.runs._record import DECODER, HARNESS
from harness.runs._setting import COUNTS

SCHEMA = 2  # docs/runs.md describes it; 1 was that of version 0.1, without requests and what the run is of
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
    lines = [f"inconclusive: {reason}" for reason in run.inconclusive]
    lines += [run.exercised.clause, *(f"remark: {remark}" for remark in run.remarks)]
    if first := run.first_divergence:
        lines.append(f"{'first defect' if run.verdict is Verdict.DEFECT else 'first tie'}: {first}")
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
        "inconclusive": run.inconclusive,
        "so_far": run.so_far,
        "remarks": run.remarks,
        "tested": run.tested or None,
        "against": run.against or None,
        "changes": run.changes,
        "compared": run.compared,
        "not_compared": run.not_compared,
        **{name: [each for setting in run.settings for each in getattr(setting, name)] for name in by_image},
        "counted_by": DECODER if run.is_its_word else HARNESS,
        "exercised": run.exercised.as_dict(),
        "covers": run.covers,
        "coverage": run.coverage.as_dict(),
        "device": str(run.device),
        "dtype": run.modes[0],
        "draft_dtype": run.modes[1],
        "precision": precision(),
        "models": run.models,
        "budget": finite(vars(run.budget)) if run.budget else None,
        "versions": versions(),
        "seconds": run.seconds,
        "decode_seconds": run.decode_seconds,
        "wall_seconds": run.wall_seconds,
        "whole": run.is_whole,
        "alone": run.alone,
        "run": of,  # what repeats it, and what was found besides its decodes
        "requests": [request_values(task.request) for task in run.plan.tasks],
        "settings": [setting.as_dict() for setting in run.settings],
    }


def _text(words: str) -> str:
    return escape(shortened(one_line(words), MOST))
