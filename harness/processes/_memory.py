"""Memory that is written once: how a process gets what it begins with, networks among it.

Promise: nobody can write into it any more, its maker included, and no path leads to it; it goes with the last
descriptor. Where the system seals no memory it is a file without a name.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from typing import BinaryIO

# Of a memfd: neither grown, nor shrunk, nor written, and so it stays.
SEALS = ("F_SEAL_GROW", "F_SEAL_SHRINK", "F_SEAL_WRITE", "F_SEAL_SEAL")


def sealed(write: Callable[[BinaryIO], object]) -> int:
    """Return a descriptor of what `write` writes; a process that inherits it reads ``/dev/fd/N``.

    Effects: an open file, which the caller closes.
    """
    can = hasattr(os, "memfd_create") and all(hasattr(fcntl, name) for name in SEALS)
    if not can:
        with tempfile.TemporaryFile() as stream:
            write(stream)
            stream.flush()
            return os.dup(stream.fileno())
    descriptor = os.memfd_create("sdvar-harness", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            write(stream)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, name) for name in SEALS))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
