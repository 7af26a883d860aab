"""What a process may write to, and whom it may signal: a domain of Landlock, which Linux holds it in.

Promise: inside a domain a process, and whatever it starts, writes to no file outside the folders that are named, but to
what `/proc` says of it, opens no other process's memory, and signals nobody outside; root is no exception. Reading is
free, and so are sockets, but where it `connects` to nobody by TCP. Where the system has no such domain nothing is
refused, and `domain_version` says so: what is kept then is kept against accidents only.

Why ctypes: three system calls, and no library of them that is kept.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import glob

LEAST = 6  # version of Landlock that scopes signals, too; an older one would keep half of the promise
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # numbers of the system calls, the same on every machine
VERSION = 1  # flag of the first: say which version there is
BENEATH = 1  # kind of a rule: what lies beneath a folder
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
MAKE_OR_REMOVE = sum(1 << bit for bit in range(4, 14))  # files, folders, links, pipes, sockets, devices; and renaming
WRITING = WRITE_FILE | TRUNCATE | MAKE_OR_REMOVE
CONNECT_TCP = 1 << 1
ABSTRACT_SOCKETS, SIGNALS = 1, 2  # scopes: nobody outside is reached
NO_NEW_PRIVILEGES = 38  # of prctl; a domain needs it
# Of /dev what computes and what every program writes to; whole disks are no such thing.
DEVICES = (
    "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "nvidia*", "dri", "kfd", "infiniband", "accel*",
    "shm", "mqueue", "hugepages",
)  # fmt: skip


class _State:
    """Whether this process is in a domain, the folder in it that is its own, and whether it may connect to others."""

    inside, own, connects = False, "", True


def domain_version() -> int:
    """Return the version of Landlock that the system has, 0 where that is none, or one that is too old."""
    if not sys.platform.startswith("linux"):
        return 0
    version = _call(CREATE_RULESET, None, 0, VERSION)
    return version if version >= LEAST else 0


def enter_domain(writable: Sequence[str], connects: bool = True) -> bool:
    """Hold this process, of one thread, and all that it will start; tell whether the system can. Raises `OSError`."""
    if not domain_version():
        return False
    ruleset = struct.pack("=QQQ", WRITING, 0 if connects else CONNECT_TCP, ABSTRACT_SOCKETS | SIGNALS)
    descriptor = _checked(_call(CREATE_RULESET, ruleset, len(ruleset), 0))
    devices = (path for name in DEVICES for path in glob(f"/dev/{name}"))
    # what this process says of itself: CUDA names its threads there as it starts, and fails where it cannot
    for path in (*writable, *devices, "/proc/self"):
        with suppress(FileNotFoundError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = WRITING if stat.S_ISDIR(os.fstat(place).st_mode) else WRITE_FILE | TRUNCATE
            _checked(_call(ADD_RULE, descriptor, BENEATH, struct.pack("=Qi", rights, place), 0))
            os.close(place)
    _checked(ctypes.CDLL(None, use_errno=True).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(_call(RESTRICT_SELF, descriptor, 0))
    os.close(descriptor)
    _State.inside, _State.own, _State.connects = True, next(iter(writable), ""), connects
    return True


def refused_write(error: BaseException) -> str:
    """Return the file that the domain of this process kept `error` from writing; empty where that is not the reason.

    Who would remove its very own folder, or write into another process, wants nothing that could be allowed.
    """
    for refused in _refusals(error):
        path = refused.filename
        if isinstance(path, str | bytes):
            path = os.path.abspath(os.fsdecode(path))
            place = path if os.path.exists(path) else os.path.dirname(path)
            if (
                path != _State.own and not path.startswith("/proc/") and os.access(place, os.W_OK)
            ):  # the file system itself would have let us
                return path
    return ""


def is_refused_connection(error: BaseException) -> bool:
    """Tell whether `error` may be that of a connection which the domain of this process refuses: it names no file."""
    return not _State.connects and any(refused.filename is None for refused in _refusals(error))


def _refusals(error: BaseException | None) -> Iterator[PermissionError]:
    """Yield what may have been refused by the domain of this process, in `error` or in what led to it."""
    for _ in range(10):
        if error is None or not _State.inside:
            return
        if isinstance(error, PermissionError) and error.errno == errno.EACCES:
            yield error
        error = error.__cause__ or error.__context__


def _call(number: int, *words: object) -> int:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    return int(call(ctypes.c_long(number), *(ctypes.c_long(w) if isinstance(w, int) else w for w in words)))


def _checked(status: int) -> int:
    if status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return status
