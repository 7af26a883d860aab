"""What somebody else's decoder prints goes nowhere where `--quiet` is asked for; what it warns of is shown once."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO

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
    kept = {stream: os.dup(stream) for stream in STREAMS if _is_open(stream)}
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        try:
            for stream in kept:
                os.dup2(nowhere.fileno(), stream)
            with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            nowhere.flush()
            for stream, copy in kept.items():
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
