"""What passes between a command and whoever started it: signals that end it, and what reaches stdout and stderr.

Promise: inside `interruptible` either signal raises `StopSignal`, which says the exit status; inside `held` it waits
for the end. A second signal is the system's own business: whoever cannot wait is not made to.
Inside `silence` nothing that somebody else's decoder prints is heard.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from types import FrameType, SimpleNamespace
from typing import TextIO

from harness.errors import StopSignal

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STATE = SimpleNamespace(held=0, waiting=0)  # how many wait for the end of something, and which signal waits for them


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
def ctrl_c_is_a_stop() -> Iterator[None]:
    """Let Ctrl-C raise `StopSignal` whoever handles it, so that a `KeyboardInterrupt` is that of the code at hand.

    Effects: the handler of SIGINT, put back when it ends; in another thread than the first nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    handler = partial(_stop_by, before)
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handler:  # else a first one has come, and the system hears the second
            signal.signal(signal.SIGINT, before)


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


def _stop_by(handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None) -> None:
    try:
        handler(number, frame)
    except StopSignal:
        raise
    except KeyboardInterrupt:
        raise StopSignal(number) from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    if _STATE.held:
        _STATE.waiting = number
        return
    raise StopSignal(number)


STREAMS = (1, 2)  # descriptors of stdout and stderr, which child processes and C code write to


@contextmanager
def silence(wanted: bool = True) -> Iterator[None]:
    """Let nothing reach stdout or stderr.

    Args:
        wanted: False: do nothing.

    Effects: both streams and their descriptors, which are put back; warnings are not shown, and errors pass through.
    """
    if not wanted:
        yield
        return
    _flush()
    copies = {stream: os.dup(stream) for stream in STREAMS if _is_open(stream)}
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        try:
            for stream in copies:
                os.dup2(nowhere.fileno(), stream)
            with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            nowhere.flush()
            for stream, copy in copies.items():
                os.dup2(copy, stream)
                os.close(copy)


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Show each warning once, text and place, however often a decoder gives it.

    Python's own filter "once" forgets what it has shown whenever any library changes the filters for a moment.

    Effects: `warnings.showwarning`, which is put back.
    """
    before, seen = warnings.showwarning, set[tuple[str, type[Warning], str, int]]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        key = str(message), category, filename, lineno
        if key not in seen:
            seen.add(key)
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _flush() -> None:
    """Write what stands in the streams' buffers to where it was meant for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
