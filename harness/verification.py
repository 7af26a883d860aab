"""`harness.verify`: the one question, asked by every door.

Promise: the verdict is that of `runs.decodes`; whatever goes wrong is an exception, never an exit. In a notebook a
line says how far it is, and the result shows itself; elsewhere nothing is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import harness.report.notebook  # noqa: F401  # how a result shows itself
from harness.decoders.factory import Factory
from harness.decoders.terms import Terms
from harness.models.pair import ModelPair
from harness.protocol.decoder import Settings
from harness.protocol.request import Request
from harness.report.progress import LongWork
from harness.runs.decodes import TERMS, Decodes, Step, verify_decodes
from harness.runs.plan import Plan
from harness.runs.result import Verification


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

    return verify_decodes(models, Decodes(factory, plan, terms), progress=step)


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
