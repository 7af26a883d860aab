"""Signals that end a run: SIGINT and SIGTERM become one exception, and never in the middle of a write.

Promise: inside `interruptible` either signal raises `StopSignal`, which says the exit status; inside `held` it waits
for the end. A second signal is the system's own business: whoever cannot wait is not made to.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.errors import StopSignal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    """Whether a signal has to wait, and which one does."""

    def __init__(self) -> None:
        self.held, self.waiting = 0, 0


_STATE = _State()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `StopSignal`. In another thread than the first nothing changes.

    Effects: handlers of the process, put back when it ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _STATE.waiting = 0


@contextmanager
def held() -> Iterator[None]:
    """Put a signal off until this has ended."""
    _STATE.held += 1
    try:
        yield
    finally:
        _STATE.held -= 1
    if _STATE.waiting and not _STATE.held:
        number, _STATE.waiting = _STATE.waiting, 0
        raise StopSignal(number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    if _STATE.held:
        _STATE.waiting = number
        return
    raise StopSignal(number)
