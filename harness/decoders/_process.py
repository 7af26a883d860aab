"""A process of Python that the harness starts: what it may take, how it begins, and how it ended.

Promise: it has a session of its own, so that Ctrl-C is its starter's to hear, and `end` ends whatever it started, too.
What it prints goes to a log. It finds this package, and what it shares with its starter is `Surroundings`.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError

TIMEOUT_S = 600.0  # a decode of ten images by the published sizes takes seconds on a GPU, minutes on a CPU
START_S, GRACE_S = 600.0, 5.0  # to get ready, imports included; to end by itself
LOG_BYTES = 4000  # of the end of a log, which is all that is read


class OutOfTimeError(BaseException):
    """A decode is taking too long; no `Exception`, so that a decoder cannot swallow it by accident."""


@dataclass(frozen=True)
class Limits:
    """What a decoder's process may take.

    Args:
        timeout_s: seconds of one decode.
        memory_gib: GiB that it may allocate on the host; 0 = no limit.

    Raises:
        InputError: no such time or memory.
    """

    timeout_s: float = TIMEOUT_S
    memory_gib: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise InputError("timeout", self.timeout_s, "must be a number of seconds above 0", "pass --timeout 600")
        if not 0 <= self.memory_gib < float("inf"):
            raise InputError("memory", self.memory_gib, "must be 0 GiB or more", "pass --memory 0 for no limit")

    def bound_memory(self) -> None:
        """Let this process, and what it starts, allocate no more than `memory_gib`. Effects: its limits."""
        if self.memory_gib:
            most = int(self.memory_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@dataclass(frozen=True)
class Surroundings:
    """What a process shares with the one that starts it, so that both compute the same."""

    tf32: bool  # the mode of precision
    threads: int  # that PyTorch computes with
    path: tuple[str, ...]  # where modules are found

    @classmethod
    def here(cls) -> Surroundings:
        """Return those of this process."""
        import torch  # noqa: PLC0415  # the door of the command line imports this module for `Limits`

        from harness.rounding import precision  # noqa: PLC0415

        path = tuple(folder or str(Path.cwd()) for folder in sys.path)
        return cls(precision()["tf32_matmul"], torch.get_num_threads(), path)

    def restore(self, path: Sequence[str] | None = None) -> None:
        """Make them those of this process."""
        import torch  # noqa: PLC0415

        from harness.rounding import set_precision  # noqa: PLC0415

        sys.path[:] = self.path if path is None else path
        set_precision(self.tf32)
        torch.set_num_threads(self.threads)


class Process:
    """One process, as its starter sees it: it calls `serve` (``package.module:function``) with words.

    It keeps the inherited descriptors open; the caller closes those that it does not need itself. `end` ends it.
    """

    def __init__(self, serve: str, words: Sequence[object], inherited: Sequence[int], log: Path) -> None:
        module, _, function = serve.partition(":")
        code = f"import sys; from {module} import {function}; {function}(*sys.argv[1:])"
        paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))))
        self._ended = False  # by its starter
        with log.open("ab") as stream:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, words)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                pass_fds=inherited, start_new_session=True, env={**os.environ, "PYTHONPATH": paths},
            )  # fmt: skip

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended hears nothing."""
        with suppress(ProcessLookupError, OSError):
            self._popen.send_signal(number)

    def death(self) -> str:
        """Say how it ended; one that only closed its connection has a moment to end."""
        try:
            status = self._popen.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if status >= 0:
            return f"ended with status {status}"
        name = signal.Signals(-status).name
        return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' and not self._ended else ''}"

    def end(self, grace_s: float = 0.0) -> None:
        """Kill it, and whatever it started, once it has had so many seconds to end by itself."""
        self._ended = True
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


def last_lines(log: Path, most: int) -> list[str]:
    """Return the last lines of a log, white space and empty ones left out."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - LOG_BYTES))
        text = stream.read().decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-most:]
