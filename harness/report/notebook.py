"""A result of `harness.verify` in a notebook: a fragment of HTML, a table of pandas, JSON."""

from __future__ import annotations

from html import escape
from typing import Any

from harness.errors import InputError, one_line, shortened
from harness.judge.verdict import Verdict
from harness.report.as_json import as_json
from harness.report.terminal import repeated_by, summary
from harness.runs.result import COUNTS, PRESENTED, Verification

# Readable on light and dark; the verdict's word says the same as its colour.
COLOURS = {Verdict.DEFECT: "#d1242f", Verdict.INCONCLUSIVE: "#9a6700"}
RIGHT = "#1a7f37"
MOST = 600  # characters of a text from outside


def as_fragment(result: Verification) -> str:
    """Return a result as a piece of HTML: verdict, a row a setting, the first divergence and what repeats it."""
    colour = COLOURS.get(result.verdict, RIGHT)
    head = "".join(f"<th>{word.replace('_', ' ')}</th>" for word in ("setting", "verdict", *COUNTS))
    rows = "".join(
        f"<tr><td>{_text(str(setting.settings))}</td><td>{setting.verdict.value}</td>"
        + "".join(f"<td>{setting.total(name):,}</td>" for name in COUNTS)
        + "</tr>"
        for setting in result.settings
    )
    made = [f'<p><strong style="color:{colour}">{result.verdict.value}</strong> {_text(summary(result))}</p>']
    made += [f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"] if rows else []
    made += [f"<p>inconclusive: {_text(reason)}</p>" for reason in result.inconclusive]
    if first := result.first_divergence:
        word = "first defect" if result.verdict is Verdict.DEFECT else "first tie"
        made.append(f"<p>{word}: {_text(str(first))}</p>")
    if alone := repeated_by(result):
        made.append(f"<pre>{_text(alone)}</pre>")
    return f"<div>{''.join(made)}</div>"


def as_frame(result: Verification) -> Any:
    """Return a `pandas.DataFrame`, a row a setting and request. Raises `InputError` where pandas is not there."""
    try:
        import pandas  # noqa: PLC0415  # no dependency: whoever works with frames has it
    except ImportError:
        raise InputError("to_frame", "pandas", "is not installed", "pip install pandas, or take to_json()") from None
    return pandas.DataFrame.from_records(records(result))


def records(result: Verification) -> list[dict[str, object]]:
    """Return plain values, a record a setting and request."""
    requests = {task.number: task.request for task in result.plan.tasks}
    made: list[dict[str, object]] = []
    for setting in result.settings:
        for row in setting.rows:
            request, counts = requests[row.task], row.counts
            made.append(
                {
                    "setting": str(setting.settings),
                    "contract": str(setting.contract),
                    "seed": request.seed,
                    "labels": ",".join(map(str, request.labels or ())),
                    "cfg": request.cfg,
                    "verdict": row.judgement.verdict.value,
                    **{name: row.judgement.count(name) for name in COUNTS},
                    "refused": row.refused,
                    "target_calls": sum(counts.target_calls) if counts else 0,
                    "seconds": row.seconds,
                    "reference_seconds": row.reference_seconds,
                }
            )
    return made


def _text(words: str) -> str:
    return escape(shortened(one_line(words), MOST))


PRESENTED.update(html=as_fragment, json=lambda result: as_json(result).decode(), frame=as_frame)
