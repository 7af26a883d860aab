"""The keeper of a process that the harness starts, and its domain: what it may write to, and whom it may signal.

Promise: when the starter says so, or is gone (`kill -9`, too), the process ends with everything that it started, in
whatever session; where the starter is gone, its folder goes, too. When the process ends, the keeper ends all that is
left of it, and then ends as it did. Signals that are for the process are passed on; those that would end a keeper early
are not heard. Inside a domain of Landlock a process, and whatever it starts, writes to no file outside the folders that
are named, but to what `/proc` says of it, opens no other process's memory, and signals nobody outside; root is no
exception. Reading is free, and so are sockets, but where it `connects` to nobody by TCP. Where the system has no such
domain nothing is refused, and `domain_version` says so: what is kept then is kept against accidents only.

How: the keeper adopts what the process leaves behind (Linux: it is the subreaper), and ends it child by child until
there is none. It is a fork of a Python that has imported next to nothing, so that it costs no start and little memory.
Why ctypes: three system calls, and no library of them that is kept.
"""

import ctypes
import errno
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from importlib import import_module
from pathlib import Path

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
    version = _call(CREATE_RULESET, None, 0, VERSION)
    return version if version >= LEAST else 0


def enter_domain(writable: Sequence[str], connects: bool = True) -> bool:
    """Hold this process, of one thread, and all that it will start; tell whether the system can. Raises `OSError`."""
    if not domain_version():
        return False
    ruleset = struct.pack("=QQQ", WRITING, 0 if connects else CONNECT_TCP, ABSTRACT_SOCKETS | SIGNALS)
    descriptor = _checked(_call(CREATE_RULESET, ruleset, len(ruleset), 0))
    # what this process says of itself: CUDA names its threads there as it starts, and fails where it cannot
    for path in (*writable, *(path for name in DEVICES for path in glob(f"/dev/{name}")), "/proc/self"):
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
            # the file system itself would have let us
            if path != _State.own and not path.startswith("/proc/") and os.access(place, os.W_OK):
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


DIES_WITH_PARENT, ADOPTS = 1, 36  # of prctl
PASSED_ON = (signal.SIGUSR1, signal.SIGTERM, signal.SIGCONT)
UNHEARD = (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR2, signal.SIGALRM)
END = b"e"  # what a starter says; a line that ends without it is that of one that is gone
MOST_S = 10.0  # for what will not end: a process that no signal reaches, in the middle of a system call
LOOK_S = 1.0  # between two looks at whether the starter is there, whatever its line says


@dataclass(frozen=True)
class Place:
    folder: str = ""  # its own, which goes where the starter is gone; empty = none
    writable: tuple[str, ...] | None = None  # folders that it may write to; None = it is held in no domain
    environment: tuple[tuple[str, str], ...] = ()  # variables of its own
    grace_s: float = 0.0  # that what it started has to end by itself: the keepers below it clear up
    connects: bool = True  # it may connect to others by TCP, in a domain


@dataclass(frozen=True)
class Keep:
    """What a keeper gets, as JSON."""

    line: int  # descriptor to its starter
    starter: int  # process that must live
    place: Place


def main() -> None:
    """Start the function that the words name, and keep it; in the process itself, return when it does."""
    told, (module, _, function), words = json.loads(sys.argv[1]), sys.argv[2].partition(":"), sys.argv[3:]
    keep = Keep(told["line"], told["starter"], Place(**told["place"]))
    _prctl(ADOPTS, 1)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in UNHEARD}
    keeper, child = os.getpid(), os.fork()
    if child:
        _keep(keep, child)
    for number, handler in before.items():
        signal.signal(number, handler)
    os.close(keep.line)
    os.setsid()
    _prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    if keep.place.writable is not None:
        enter_domain(keep.place.writable, keep.place.connects)
    sys.argv = [sys.argv[2], *words]
    getattr(import_module(module), function)(*words)


def _keep(keep: Keep, child: int) -> None:
    """Wait for the end of the process, or the word to end it; then end all, and this keeper as it ended."""
    for number in PASSED_ON:
        signal.signal(number, lambda which, frame: _send(child, which))
    os.closerange(3, keep.line)
    os.closerange(keep.line + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    status = _watch(keep, child)
    gone = _is_gone(keep)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    status = _end_all(child, status, keep.place.grace_s)
    if keep.place.folder and (gone or os.getppid() != keep.starter):
        import shutil  # noqa: PLC0415  # nobody else waits for it

        shutil.rmtree(keep.place.folder, ignore_errors=True)
    _end_as(status)


def _watch(keep: Keep, child: int) -> int | None:
    """Return the status of the process when it ends; None where it has to be ended."""
    poll = select.poll()
    poll.register(keep.line, select.POLLIN)
    with suppress(AttributeError, OSError):  # where Python or the system has none, it is looked for
        poll.register(os.pidfd_open(child), select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll(LOOK_S * 1000)]
        status = _reaped(child)
        if status is not None:
            return status
        if keep.line in ready or os.getppid() != keep.starter:
            return None


def _is_gone(keep: Keep) -> bool:
    """Tell whether the starter is: its line has ended without the word that it should."""
    poll = select.poll()
    poll.register(keep.line, select.POLLIN)
    with suppress(OSError):
        return bool(poll.poll(0)) and os.read(keep.line, 1) != END
    return True


def _reaped(child: int) -> int | None:
    """Take leave of all that has ended; return the status of the process where it is among them."""
    status = None
    with suppress(ChildProcessError):
        while True:
            which, how = os.waitpid(-1, os.WNOHANG)
            if not which:
                return status
            status = how if which == child else status
    return status


def _end_all(child: int, status: int | None, grace_s: float) -> int:
    """End every child, and theirs, which are adopted as they lose their parent; return the status of the process."""
    begin = time.monotonic()
    while (now := time.monotonic()) < begin + MOST_S:
        try:
            which, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if which:
            status = how if which == child else status
            continue
        if now >= begin + grace_s:
            for each in _children():
                _send(each, signal.SIGKILL)
        time.sleep(0.005)
    return 0 if status is None else status


def _children() -> list[int]:
    """Return the processes whose parent this one is; none where the system does not say."""
    found, own = [], os.getpid()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == own:
                found.append(int(path.parent.name))
    return found


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _end_as(status: int) -> None:
    """End this process as another one did."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one is enough
        number = os.WTERMSIG(status)
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
