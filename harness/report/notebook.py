"""`harness.verify`: a verification as people ask for it in a notebook or a script.

Promise: the verdict is that of `runs.verification`; whatever goes wrong is an exception, never an exit. In a notebook a
line says how far it is, and the result shows itself; elsewhere nothing is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from harness.errors import InputError, one_line, shortened
from harness.judge.verdict import Verdict
from harness.models.pair import ModelPair
from harness.protocol.decoder import Settings
from harness.protocol.request import Request
from harness.report.as_json import as_json
from harness.report.progress import LongWork
from harness.report.terminal import repeated_by, summary
from harness.runs.factory import Factory
from harness.runs.plan import Plan
from harness.runs.result import COUNTS, PRESENTED, Verification
from harness.runs.terms import Terms
from harness.runs.verification import TERMS, Step, verify_plan

# Readable on light and dark; the verdict's word says the same as its colour.
COLOURS = {Verdict.DEFECT: "#d1242f", Verdict.INCONCLUSIVE: "#9a6700"}
RIGHT = "#1a7f37"
MOST = 600  # characters of a text from outside


def verify(
    models: ModelPair,
    factory: Factory | str,
    settings: Settings | Sequence[Settings],
    requests: Request | Sequence[Request],
    progress: Callable[[], None] | None = None,
    terms: Terms = TERMS,
) -> Verification:
    """Run a decoder and the reference over all requests and settings, and judge every token.

    Args:
        models: networks of both sides; the decoder under test gets copies.
        factory: builds the decoder for one setting; a function, or its name ``package.module:factory``.
        settings: one, or several.
        requests: one, or several.
        progress: called after every request; None = a line in a notebook, and nothing elsewhere.
        terms: how the run is judged.

    Returns:
        The result: `verdict`, `first_divergence`, counts; `to_json()`, `to_frame()`.

    Raises:
        InputError: a setting or a request that the decoder or the networks refuse; a decoder that claims less than is
            demanded; a stored budget that is too wide.
        RunInterrupted: Ctrl-C, or a notebook's stop button; `result` is what was judged until then.

    Effects: a process for a decoder that is not the harness's own; it has ended when this returns.
    """
    chosen = [settings] if isinstance(settings, Settings) else settings
    asked = [requests] if isinstance(requests, Request) else requests
    plan, told = Plan.of(chosen, asked), progress
    line = NotebookLine(plan.images) if told is None and in_notebook() else None

    def step(done: Step) -> None:
        if told is not None:
            told()
        if line is not None:
            line.advance(done)

    return verify_plan(models, factory, plan, terms, progress=step)


def in_notebook() -> bool:
    """Tell whether a notebook's kernel runs this; nothing is imported to find out."""
    return "ipykernel" in sys.modules and hasattr(sys.modules.get("IPython.display"), "display")


class NotebookLine:
    """A line in a notebook that says how far some work is.

    Args:
        images: how many there are.
    """

    def __init__(self, images: int) -> None:
        self.work = LongWork("images", images, quiet=True)
        self._shown = sys.modules["IPython.display"].display(
            {"text/plain": self.work.line()}, raw=True, display_id=True
        )

    def advance(self, done: Step) -> None:
        """Count what was done."""
        self.work.advance(done.images, done.defects)
        self._shown.update({"text/plain": self.work.line()}, raw=True)


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
