"""Memory that two processes share by a descriptor: what one begins with, networks among it, and what it answers in.

Promise: no path leads to it, and it goes with the last descriptor. What is `sealed` nobody can write into any more, its
maker included; what is `sized` nobody can cut short, which would end whoever reads it there (SIGBUS). Where the system
seals no memory both are files without a name.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable
from typing import BinaryIO

SIZED = ("F_SEAL_GROW", "F_SEAL_SHRINK", "F_SEAL_SEAL")  # of a memfd: neither grown nor shrunk, and so it stays
SEALED = (*SIZED, "F_SEAL_WRITE")  # nor written
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
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, name) for name in seals))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
