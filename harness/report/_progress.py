"""Long work as it goes on: done, rate, time left for the whole run, defects so far.

Promise: on a terminal a bar that is gone when the work is; where stderr is piped a plain line a minute; nothing when it
is asked to be quiet. Nothing of it reaches stdout.

Why rich and not tqdm: the tables are rich's already, and its bar and ours share the terminal's width and colours.
"""

import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from harness.judge import Divergence
from harness.wording import count_of

PLAIN_S = 60.0  # between two lines in a log
BESIDE = 52  # columns of what stands beside the bar


@dataclass(frozen=True)
class Later:
    """What is known of a run's time before it is seen: of what it does after the work that is shown, and of a step."""

    seconds: float = 0.0  # afterwards, as others took
    steps: int = 0  # afterwards, as long as those that are shown
    pace: float = 0.0  # seconds of a step, as others took, until two were seen; 0 = nobody knows


NOTHING = Later()


class LongWork:
    """Shows how far some work is, in units such as ``images``; a context manager. Calls `told` after every step.

    Without `bar` a terminal gets a line a minute, too.
    """

    def __init__(
        self, unit: str, total: int, quiet: bool = False, told: Callable[[], object] = lambda: None,
        later: Later = NOTHING, bar: bool = True,
    ) -> None:  # fmt: skip
        console = Console(stderr=True)
        self.unit, self.total, self.done, self.defects, self.quiet, self.told = unit, total, 0, 0, quiet, told
        self.later, self._begun = later, time.monotonic()
        self._said = self._begun  # when a line was said last
        self.first: Divergence | None = None  # the first defect
        self._ended, self._saying = threading.Event(), threading.Lock()
        self._first, self._since = 0, self._begun  # the steps that were done first, and when they were
        column = BarColumn(max(5, min(40, console.width - BESIDE)))
        texts = (TextColumn("{task.fields[beside]}", style="progress.remaining"), TextColumn("{task.fields[defects]}"))
        # a console that takes a pipe for a terminal (FORCE_COLOR) keeps every bar that it is shown
        self.shown = bar and console.is_interactive and sys.stderr.isatty() and not quiet
        self._bar = Progress(
            TextColumn("{task.description}"), column, MofNCompleteColumn(), *texts, console=console, transient=True,
            disable=not self.shown,
        )  # fmt: skip
        self._task = self._bar.add_task(unit, total=total, defects="", beside="")

    def __enter__(self) -> Self:
        self._bar.start()
        if not (self.quiet or self.shown):
            threading.Thread(target=self._say_each_minute, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._bar.stop()

    def _say_each_minute(self) -> None:
        """Say how far it is where a single step takes minutes."""
        while not self._ended.wait(PLAIN_S / 60):
            self._say_line()

    def _say_line(self) -> None:
        now = time.monotonic()
        with self._saying:
            if self._ended.is_set() or now - self._said < PLAIN_S:
                return
            self._said = now
            print(self.line(), file=sys.stderr, flush=True)

    def advance(
        self, count: int = 1, defects: int = 0, task: str = "", off: int = 0, first: Divergence | None = None
    ) -> None:
        """Count what was done since, and take `off` what need not be; `task` is what is in hand now, not the unit.

        `first` is of the `defects`.
        """
        self.first = self.first or first
        if not self.done:
            self._first, self._since = count, time.monotonic()
        self.done, self.defects, self.total = self.done + count, self.defects + defects, self.total - off
        self.total = max(self.total, self.done)  # laws that refuse one dtype are asked in another
        words, beside = count_of(self.defects, "defect") if self.defects else "", f"{self._pace()}, {self._left()} left"
        self._bar.update(
            self._task, total=self.total, advance=count, defects=words, beside=beside, description=task or self.unit
        )
        if not (self.quiet or self.shown):
            if self.done == count > 0 and self._seconds >= PLAIN_S:
                self._said = -PLAIN_S  # what will be long has a line of its own after the first step
            self._say_line()
        self.told()

    def line(self) -> str:
        found = count_of(self.defects, "defect") + (f", the first {self.first.brief}" if self.first else "")
        if not self.done:
            return f"0 of {self.total} {self.unit}, {time.monotonic() - self._begun:.0f} s so far"
        return f"{self.done} of {self.total} {self.unit}, {self._pace()}, {self._left()} left, {found}"

    @property
    def _rate(self) -> float:
        """Steps a second, 0 before the first; without the first ones, which begin slowly or were kept from before."""
        if self.done > self._first:
            return (self.done - self._first) / max(1e-9, time.monotonic() - self._since)
        if self.later.pace:
            return 1 / self.later.pace
        seconds = time.monotonic() - self._begun
        return self.done / seconds if seconds > 0.01 else 0.0

    def _pace(self) -> str:
        rate = self._rate
        return f"{1 / rate:.1f} s each" if 0 < rate < 1 else f"{rate:.1f} a second"

    @property
    def _seconds(self) -> float:
        """The time that is left for the run; infinite before the first step."""
        steps = self.total - self.done + self.later.steps
        return self.later.seconds + (steps / self._rate if self._rate else math.inf if steps else 0.0)

    def _left(self) -> str:
        """Return the time that is left, minutes and seconds; a question mark before the first step."""
        seconds, most = self._seconds, "at most " * (0 < self.done == self._first and not self.later.pace)
        return f"{most}{int(seconds // 60)}:{int(seconds % 60):02d}" if math.isfinite(seconds) else "?"


class Watch(Protocol):
    """Shows how far a stage of a run is: of what is counted, and how many there are."""

    def __call__(self, unit: str, total: int, *, later: Later = NOTHING) -> AbstractContextManager[LongWork]:
        """Begin a stage."""


def watch_of(progress: Callable[[], None] | None) -> Watch:
    """Return what shows progress: somebody's function; where there is none, a line in a notebook, or one a minute."""
    # nothing is imported to find out whether a notebook's kernel runs this
    if progress is None and "ipykernel" in sys.modules and hasattr(sys.modules.get("IPython.display"), "display"):
        return _notebook_line
    return partial(LongWork, bar=False) if progress is None else partial(LongWork, quiet=True, told=progress)


def _notebook_line(unit: str, total: int, *, later: Later = NOTHING) -> LongWork:
    work = LongWork(unit, total, quiet=True, later=later)
    shown = sys.modules["IPython.display"].display({"text/plain": work.line()}, raw=True, display_id=True)
    work.told = lambda: shown.update({"text/plain": work.line()}, raw=True)
    return work
