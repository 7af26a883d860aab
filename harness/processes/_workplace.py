"""Where a process of somebody else's code lives: a folder, a log and a place of its own; perhaps before it has work.

Promise: a process that is started ahead is one as any other, in its own folder and domain. It imports what its work
needs while its starter does the same, and has nothing of anybody's, and runs nothing of a decoder's, until its line is
asked for here. It serves one who asks on the same terms; anybody else gets a fresh one, and one that nobody asked for
ends with its starter's work. A folder goes when its owner says so; where the owner was killed, the next one who makes
such a folder removes it. One whose owner let go of it, since somebody shall read what is in it, stays.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.processes._keeper import Place, domain_version
from harness.processes._process import Log, ProcessLine

PREFIX, OWNER = "sdvar-harness-", ".owner"  # the owner holds a lock on that file as long as it lives


class OwnFolder:
    """A folder that lives as long as this process, or until `remove` or `leave`. Effects: a folder, an open file."""

    def __init__(self) -> None:
        clear_abandoned()
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
        self._descriptor = os.open(made / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = made.rename(made.with_name(made.name.removeprefix(".")))  # nobody finds it without its lock

    def remove(self) -> None:
        """Remove it, whatever somebody has made of it."""
        self._let_go()
        shutil.rmtree(self.path, ignore_errors=True)

    def leave(self, *kept: str) -> None:
        """Leave the files of these names to whoever wants to read them, and nothing else."""
        self._let_go()
        with suppress(OSError):
            for path in list(self.path.iterdir()):
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def clear_abandoned() -> None:
    """Remove the folders of those who were killed: theirs is a lock that nobody holds."""
    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError):  # somebody else's, or somebody holds it, or somebody else is removing it
            if owner.lstat().st_uid != os.geteuid():
                continue
            descriptor = os.open(owner, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owner.parent, ignore_errors=True)
            finally:
                os.close(descriptor)


LOG = "decoder.log"
# Where programs keep what they compile, by the variable that says so; each gets a folder of that name.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "TORCH_EXTENSIONS_DIR", "NUMBA_CACHE_DIR")
TEMPORARY, CACHE = "TMPDIR", "XDG_CACHE_HOME"


class Workplace:
    """The workplace of processes that call `serve` with a word, one after the other; the first starts at once.

    Effects: a process, a folder, an open file; `close` ends them.
    """

    def __init__(self, serve: str, word: str, allow_write: Sequence[str], connects: bool = True) -> None:
        self._serve, self._word = serve, word
        self._folder = OwnFolder()
        self.log = Log(self._folder.path / LOG)
        self._waiting: ProcessLine | None = None
        try:
            self._place = own_place(self._folder.path, allow_write, connects)
            self._waiting = self._started()
        except BaseException:
            self.close()
            raise

    def line(self) -> ProcessLine:
        """Return the line to the process that waits, or to a fresh one; whoever asks closes it."""
        waiting, self._waiting = self._waiting, None
        return waiting or self._started()

    def close(self, keep_log: bool = False) -> None:
        """End a process that waits, and remove the folder, perhaps but for the log."""
        if self._waiting is not None:
            self._waiting.close(0.0)
        with suppress(OSError):
            self.log.close()
        if keep_log:
            self._folder.leave(LOG)
        else:
            self._folder.remove()

    def _started(self) -> ProcessLine:
        return ProcessLine(self._serve, [self._word], [], self.log, self._place)


_AHEAD: dict[tuple[object, ...], Workplace] = {}  # started, and not yet asked for, by their terms


@contextmanager
def started_ahead(serve: str, word: str, allow_write: Sequence[str]) -> Iterator[None]:
    """Start a process before its work is known, for `workplace_for`. Effects: a process, which has ended afterwards."""
    terms = _terms(serve, allow_write, True)
    _AHEAD[terms] = Workplace(serve, word, allow_write)
    try:
        yield
    finally:
        unused = _AHEAD.pop(terms, None)
        if unused is not None:
            unused.close()


def workplace_for(serve: str, word: str, allow_write: Sequence[str], connects: bool) -> Workplace:
    """Return the workplace that was started ahead on these terms, or a fresh one; the caller closes it."""
    return _AHEAD.pop(_terms(serve, allow_write, connects), None) or Workplace(serve, word, allow_write, connects)


def _terms(serve: str, allow_write: Sequence[str], connects: bool) -> tuple[object, ...]:
    return serve, tuple(str(Path(folder).absolute()) for folder in allow_write), connects


def own_place(folder: Path, allow_write: Sequence[str], connects: bool) -> Place:
    """Return where the process of a decoder may work: what is temporary, and what is cached, lies in its own folder.

    What the user's cache holds is found all the same. A variable of the user's that names a folder which may be written
    to (`allow_write`) stays as it is.
    """
    environment = {TEMPORARY: "tmp", CACHE: "cache", **{name: name for name in CACHES}}
    for name, place in list(environment.items()):
        given = os.environ.get(name, "")
        if given and any(Path(given).is_relative_to(allowed) for allowed in allow_write):
            del environment[name]
        else:
            (folder / place).mkdir()
            environment[name] = str(folder / place)
    if CACHE in environment:
        with suppress(OSError, RuntimeError):  # the latter of a user without a home
            for there in (Path(os.environ.get(CACHE) or Path.home() / ".cache")).iterdir():
                (folder / "cache" / there.name).symlink_to(there)
    writable = (str(folder), *allow_write) if domain_version() else None
    return Place(str(folder), writable, tuple(environment.items()), connects=connects)
