"""Long work as it goes on: done, rate, time left, defects so far.

Promise: on a terminal a bar that is gone when the work is; where stderr is piped a plain line now and then; nothing
when it is asked to be quiet. Nothing of it reaches stdout.

Why rich and not tqdm: the tables are rich's already, and its bar and ours share the terminal's width and colours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from harness.wording import count_of

PLAIN_S = 30.0  # between two lines in a log
BESIDE = 52  # columns of what stands beside the bar


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing while there is none."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class LongWork:
    """Shows how far some work is, in units such as ``images``; a context manager. Calls `told` after every step."""

    def __init__(self, unit: str, total: int, quiet: bool = False, told: Callable[[], object] = lambda: None) -> None:
        console = Console(stderr=True)
        self.unit, self.total, self.done, self.defects, self.quiet, self.told = unit, total, 0, 0, quiet, told
        self._begun = self._said = time.monotonic()
        self._kept = 0  # done before this began
        bar = BarColumn(max(5, min(40, console.width - BESIDE)))
        columns = (
            TextColumn("{task.description}"), bar, MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
            TextColumn("{task.fields[defects]}"),
        )  # fmt: skip
        self.shown = console.is_interactive and not quiet
        self._bar = Progress(*columns, console=console, transient=True, disable=not self.shown)
        self._task = self._bar.add_task(unit, total=total, defects="")

    def __enter__(self) -> LongWork:
        """Begin to show it."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def advance(self, count: int = 1, defects: int = 0, task: str = "") -> None:
        """Count what was done since; `task` is what is in hand now, in place of the unit."""
        if not self.done:
            self._kept = count if time.monotonic() - self._begun < 0.01 else 0
        self.done, self.defects = self.done + count, self.defects + defects
        words = count_of(self.defects, "defect") if self.defects else ""
        self._bar.update(self._task, advance=count, defects=words, description=task or self.unit)
        if not (self.quiet or self.shown) and time.monotonic() - self._said >= PLAIN_S:
            self._said = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)
        self.told()

    def line(self) -> str:
        """Return the plain line."""
        rate = (self.done - self._kept) / max(1e-9, time.monotonic() - self._begun)
        left = (self.total - self.done) / rate if rate else 0.0
        return (
            f"{self.done} of {self.total} {self.unit}, {rate:.1f} a second, "
            f"{int(left // 60)}:{int(left % 60):02d} left, {count_of(self.defects, 'defect')}"
        )


Watch = Callable[[str, int], AbstractContextManager[LongWork]]  # of what is counted, and how many there are


def watch_of(progress: Callable[[], None] | None) -> Watch:
    """Return what shows progress: somebody's function; where there is none, a line in a notebook, or nothing."""
    # nothing is imported to find out whether a notebook's kernel runs this
    if progress is None and "ipykernel" in sys.modules and hasattr(sys.modules.get("IPython.display"), "display"):
        return _notebook_line
    return partial(LongWork, quiet=True, told=progress or (lambda: None))


def _notebook_line(unit: str, total: int) -> LongWork:
    """Show a line in a notebook."""
    work = LongWork(unit, total, quiet=True)
    shown = sys.modules["IPython.display"].display({"text/plain": work.line()}, raw=True, display_id=True)
    work.told = lambda: shown.update({"text/plain": work.line()}, raw=True)
    return work
