"""A line to a process: bytes there, lines of bytes back, within a time and a bound.

Promise: no word takes longer than it was given, in either direction; what comes back costs time and memory in
proportion to its length, `LONGEST` at most. Nothing of it is believed here.
"""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

from harness.errors import HarnessError
from harness.processes._process import ANYWHERE, Log, Place, Process

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
