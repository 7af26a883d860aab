"""The keeper of a process that the harness starts: it stands between the starter and that process.

Promise: when the starter says so, or is gone (`kill -9`, too), the process ends with everything that it started, in
whatever session; where the starter is gone, its folder goes, too. When the process ends, the keeper ends all that is
left of it, and then ends as it did. Signals that are for the process are passed on; those that would end a keeper early
are not heard.

How: the keeper adopts what the process leaves behind (Linux: it is the subreaper), and ends it child by child until
there is none. It is a fork of a Python that has imported next to nothing, so that it costs no start and little memory.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from harness.processes._domain import enter_domain

DIES_WITH_PARENT, ADOPTS = 1, 36  # of prctl
PASSED_ON = (signal.SIGUSR1, signal.SIGTERM, signal.SIGCONT)
UNHEARD = (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR2, signal.SIGALRM)
END = b"e"  # what a starter says; a line that ends without it is that of one that is gone
MOST_S = 10.0  # for what will not end: a process that no signal reaches, in the middle of a system call
LOOK_S = 1.0  # between two looks at whether the starter is there, whatever its line says


@dataclass(frozen=True)
class Keep:
    """What a keeper gets, as JSON."""

    line: int  # descriptor to its starter
    starter: int  # process that must live
    folder: str  # that is removed where the starter is gone; empty = none
    grace_s: float  # that what the process started has to end by itself: the keepers below it clear up
    writable: list[str] | None  # folders that the process may write to; None = it is in no domain
    connects: bool  # whether it may connect to others by TCP, in a domain


def main() -> None:
    """Start the function that the words name, and keep it; in the process itself, return when it does."""
    keep, (module, _, function), words = Keep(**json.loads(sys.argv[1])), sys.argv[2].partition(":"), sys.argv[3:]
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
    if keep.writable is not None:
        enter_domain(keep.writable, keep.connects)
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
    status = _end_all(child, status, keep.grace_s)
    if keep.folder and (gone or os.getppid() != keep.starter):
        import shutil  # noqa: PLC0415  # nobody else waits for it

        shutil.rmtree(keep.folder, ignore_errors=True)
    _end_as(status)


def _watch(keep: Keep, child: int) -> int | None:
    """Return the status of the process when it ends; None where it has to be ended."""
    poll = select.poll()
    poll.register(keep.line, select.POLLIN)
    with suppress(AttributeError, OSError):  # elsewhere than on Linux it is looked for
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
    """Tell Linux something about this process; elsewhere nothing."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
