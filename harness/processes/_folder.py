"""A folder of one's own in the system's temporary one.

Promise: it goes when its owner says so; where the owner was killed, the next one who makes such a folder removes it. A
folder whose owner let go of it, since somebody shall read what is in it, stays.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

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
