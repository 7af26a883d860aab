"""A process of Python that the harness starts: how it begins, what it is given, how it is heard, and how it ended.

Promise: it has a session of its own, so that Ctrl-C is its starter's to hear; whatever becomes of its starter, it ends,
with all that it started (`_keeper`). What it prints goes to a log, which is held by its descriptor and read within a
bound, whatever the process makes of the file's name. It finds this package, and nothing of the current folder's. No
word of a `ProcessLine` takes longer than it was given, in either direction; what comes back costs time and memory in
proportion to its length, `LONGEST` at most, and nothing of it is believed here. No path leads to the memory that it is
given, which goes with the last descriptor: what is `sealed` nobody can write into any more, its maker included; what is
`sized` nobody can cut short, which would end whoever reads it there (SIGBUS). Where the system seals no memory both are
files without a name.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from harness.errors import HarnessError
from harness.processes._keeper import END, MOST_S, Keep, Place
from harness.signals import keep_standard_open

START_S, GRACE_S = 600.0, 5.0  # to get ready, imports included; to end by itself
LOG_BYTES = 4000  # of the end of a log, which is all that is read
SEAL_S = 5.0  # of a busy system
START = "from harness.processes._keeper import main; main()"


class Log:
    """What a process prints; a file of that name, or one without. Effects: an open file; `close` closes it."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        if path is None:
            with tempfile.TemporaryFile() as stream:
                self.descriptor = os.dup(stream.fileno())
            return
        self.descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def last_lines(self, most: int) -> list[str]:
        """Return the last lines, white space and empty ones left out, of the last `LOG_BYTES`."""
        size = os.fstat(self.descriptor).st_size
        text = os.pread(self.descriptor, LOG_BYTES, max(0, size - LOG_BYTES)).decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-most:]

    def said(self, most: int) -> str:
        """Say where it lies, and what its last lines are, for a person."""
        lines = self.last_lines(most)
        with suppress(OSError, ValueError):
            if self.path is not None and os.path.samestat(os.lstat(self.path), os.fstat(self.descriptor)):
                return f"log {self.path}" + (f" ends: {' | '.join(lines)}"[:400] if lines else " is empty")
        return "the log is gone" + (f"; it ended: {' | '.join(lines)}"[:400] if lines else "")

    def close(self) -> None:
        """Close it; once more does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


ANYWHERE = Place()


class Process:
    """One process, as its starter sees it: it calls `serve` (``package.module:function``) with words.

    It keeps the inherited descriptors open; the caller closes those that it does not need itself. `end` ends it.
    """

    def __init__(
        self, serve: str, words: Sequence[object], inherited: Sequence[int], log: Log, place: Place = ANYWHERE
    ) -> None:
        keep_standard_open()
        paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))))
        self._ended = False  # by its starter
        self._line, theirs = socket.socketpair()
        with theirs:
            keep = Keep(theirs.fileno(), os.getpid(), place)
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", START, json.dumps(asdict(keep)), serve, *map(str, words)],
                stdin=subprocess.DEVNULL, stdout=log.descriptor, stderr=log.descriptor,
                pass_fds=[*inherited, theirs.fileno()], start_new_session=True,
                env={**os.environ, **dict(place.environment), "PYTHONPATH": paths},
            )  # fmt: skip

    @property
    def is_alive(self) -> bool:
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
        name = signal_name(-status)
        return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' and not self._ended else ''}"

    def end(self, grace_s: float = 0.0) -> None:
        """Kill it, and whatever it started, once it has had so many seconds to end by itself."""
        self._ended = True
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(grace_s)
        with suppress(OSError):
            self._line.sendall(END)
        self._line.close()
        try:
            self._popen.wait(MOST_S + GRACE_S)
        except subprocess.TimeoutExpired:  # the keeper itself is stopped: what it kept ends with it
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


LONGEST = 2**26  # bytes of one answer; the rounds of a thousand images take some megabytes
PIECE = 2**20
MOST_GIVEN = 2  # open files


class GoneError(HarnessError):
    """The process gave no answer; the message says why."""


class UnreadableError(HarnessError):
    """What the other process says is not what it may say."""


class ProcessLine:
    """The line to one process, which calls `serve` with `words` and the descriptor of its end.

    It needs the `inherited` descriptors besides. Effects: a process; `close` ends it.
    """

    def __init__(
        self, serve: str, words: Sequence[object], inherited: Sequence[int], log: Log, place: Place = ANYWHERE
    ) -> None:
        self._socket, theirs = socket.socketpair()
        self._buffer = bytearray()
        with theirs:
            self.process = Process(serve, [*words, theirs.fileno()], [*inherited, theirs.fileno()], log, place)

    def tell(self, message: bytes, seconds: float) -> None:
        """Send a message. Raises `GoneError` where it is not taken in time."""
        self._socket.settimeout(max(seconds, 0.001))
        try:
            self._socket.sendall(message)
        except TimeoutError:
            raise GoneError(f"the question was not taken within {seconds:g} s (timeout)") from None
        except OSError:
            raise GoneError(f"the decoder's process {self.process.death()} before the decode") from None

    def give(self, descriptors: Sequence[int]) -> None:
        """Let the process have open files, which it takes by `given`. Raises `GoneError` where it has ended."""
        try:
            socket.send_fds(self._socket, [b"."], descriptors)
        except OSError:
            raise GoneError(f"the decoder's process {self.process.death()} before it had its work") from None

    def hear(self, seconds: float, word: str) -> bytes:
        """Return the next line. Raises `GoneError` where none comes, `UnreadableError` where it has no end."""
        end, looked = time.monotonic() + seconds, 0
        while (place := self._buffer.find(b"\n", looked)) < 0:
            looked = len(self._buffer)
            if looked > LONGEST:
                raise UnreadableError(f"the decoder's process answers with more than {LONGEST} bytes")
            self._buffer += self._piece(end - time.monotonic(), f"no answer within {seconds:g} s ({word})")
        line = bytes(self._buffer[:place])
        del self._buffer[: place + 1]
        return line

    def _piece(self, seconds: float, late: str) -> bytes:
        """Return what is there next. Raises `GoneError`."""
        if seconds <= 0:
            raise GoneError(late)
        self._socket.settimeout(seconds)
        try:
            piece = self._socket.recv(PIECE)
        except TimeoutError:
            raise GoneError(late) from None
        except OSError:  # closed with what it had not read
            piece = b""
        if not piece:
            raise GoneError(f"the decoder's process {self.process.death()}")
        return piece

    def close(self, grace_s: float) -> None:
        """End the process and whatever it started, once it has had so many seconds to end by itself."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.process.end(grace_s)


def given(line: int) -> list[int]:
    """Return the open files that the starter of this process has for it. Raises `EOFError` where that one is gone."""
    with socket.socket(fileno=os.dup(line)) as end:
        word, descriptors, _, _ = socket.recv_fds(end, 1, MOST_GIVEN)
    if not word:
        raise EOFError
    for each in descriptors:
        os.set_inheritable(each, False)
    return list(descriptors)


SIZED = ("F_SEAL_GROW", "F_SEAL_SHRINK", "F_SEAL_SEAL")  # of a memfd: neither grown nor shrunk, and so it stays
SEALED = (*SIZED, "F_SEAL_WRITE")  # nor written
# Of the system and of this Python: one that was built where the C library lacked it (uv's, conda-forge's) has none.
CAN_SEAL = hasattr(os, "memfd_create") and all(hasattr(fcntl, name) for name in SEALED)


def sealed(write: Callable[[BinaryIO], object]) -> int:
    """Return a descriptor of what `write` writes; a process that inherits it reads ``/dev/fd/N``.

    Effects: an open file, which the caller closes.
    """
    return _made(write, SEALED)


def sized(size: int) -> int:
    """Return a descriptor of so many bytes, for whoever inherits it to write. Effects: as those of `sealed`."""
    return _made(lambda stream: stream.truncate(size), SIZED)


def _made(write: Callable[[BinaryIO], object], seals: tuple[str, ...]) -> int:
    if not CAN_SEAL:
        with tempfile.TemporaryFile() as stream:
            write(stream)
            stream.flush()
            return os.dup(stream.fileno())
    descriptor = os.memfd_create("sdvar-harness", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            write(stream)
        _seal(descriptor, sum(getattr(fcntl, name) for name in seals))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _seal(descriptor: int, seals: int) -> None:
    """Seal a file, once the system is no longer busy moving a page of it, as it is where memory is short."""
    end = time.monotonic() + SEAL_S
    while True:
        try:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return
