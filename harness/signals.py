"""What passes between a command and whoever started it: signals that end it, and what reaches stdout and stderr.

Promise: inside `interruptible` each of `SIGNALS` raises `StopSignal`, which says the exit status; inside `held` it
waits for the end, and so it does while a module is imported, since libraries swallow whatever is raised in theirs. One
that is lost where nothing can be raised (a destructor, a callback) is raised again. A second signal is the system's own
business: whoever cannot wait is not made to. A process that was started deaf to a signal (`nohup`, a shell's background
job) stays so.
Inside `silence` nothing that somebody else's decoder prints is heard.
"""

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType, SimpleNamespace
from typing import Any

from harness.errors import StopSignal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IMPORTING = "<frozen importlib._bootstrap>"  # file of the frames below a module's own while it is imported
IMPORT_S, AGAIN_S = 5.0, 0.05  # a signal waits so long for an import; and is sent again after so long
# how many wait for the end of something, which signal waits for them, which one came, and when
_STATE = SimpleNamespace(held=0, waiting=0, came=0, since=0.0)


def last_signal() -> int:
    """Return the signal that came inside the last `interruptible`, whatever became of its `StopSignal`; 0 = none."""
    return int(_STATE.came)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals raise `StopSignal`. In another thread than the first nothing changes.

    Effects: handlers of the process, and what Python does with exceptions that nobody can raise; both are put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _STATE.came, _STATE.since = 0, 0.0
    # not those that this process was started deaf to, or that Python could not put back
    heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before, lost = {number: signal.signal(number, _interrupt) for number in heard}, sys.unraisablehook

    def raise_again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, StopSignal):
            signal.signal(_STATE.came, _interrupt)
            _again(_STATE.came)
        else:
            lost(unraisable)

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = lost
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

    def stop(number: int, frame: FrameType | None) -> None:
        try:
            before(number, frame)
        except StopSignal:
            raise
        except KeyboardInterrupt:
            raise StopSignal(number) from None

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is stop:  # else a first one has come, and the system hears the second
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


def _again(number: int) -> None:
    threading.Timer(AGAIN_S, os.kill, (os.getpid(), number)).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if number != _STATE.came:
        _STATE.came, _STATE.since = number, now
    imports = any(each.f_code.co_filename == IMPORTING for each, _ in traceback.walk_stack(frame))
    if imports and now < _STATE.since + IMPORT_S:
        _again(number)
        return
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    if _STATE.held:
        _STATE.waiting = number
        return
    raise StopSignal(number)


def keep_standard_open() -> None:
    """Open descriptors 0, 1 and 2 where they are closed: the next file would stand for one of them."""
    for number in range(3):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # the lowest one that is free


STREAMS = (1, 2)  # descriptors of stdout and stderr, which child processes and C code write to


@contextmanager
def silence(wanted: bool = True) -> Iterator[None]:
    """Let nothing reach stdout or stderr, where `wanted`. Effects: both streams, put back; no warning is shown."""
    if not wanted:
        yield
        return
    for written in (sys.stdout, sys.stderr):  # what stands in their buffers was meant to be heard
        with suppress(OSError, ValueError, AttributeError):  # closed, or none
            written.flush()
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

    def show(message: Any, category: Any, filename: Any, lineno: Any, *rest: Any, **named: Any) -> None:
        key = str(message), category, filename, lineno
        if key not in seen:
            seen.add(key)
            before(message, category, filename, lineno, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
