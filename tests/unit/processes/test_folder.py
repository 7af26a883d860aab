"""A folder of one's own goes with its owner, or with the next one who makes such a folder."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.processes import _process
from harness.processes._process import sealed, sized
from harness.processes._workplace import OWNER, PREFIX, OwnFolder, clear_abandoned

ROOT = str(Path(__file__).parents[3])


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_it_goes_or_leaves_what_shall_be_read(tmp_path: Path):
    one, two = OwnFolder(), OwnFolder()
    for folder in (one, two):
        (folder.path / "log").write_text("x")
        (folder.path / "tmp").mkdir()
    one.remove()
    two.leave("log")
    assert [sorted(p.name for p in folder.iterdir()) for folder in tmp_path.iterdir()] == [["log"]]
    OwnFolder().remove()  # what was left is nobody's to remove
    assert (two.path / "log").read_text() == "x"


def test_that_of_somebody_who_was_killed_goes_with_the_next(tmp_path: Path):
    code = "from harness.processes._workplace import OwnFolder; f = OwnFolder(); print(f.path, flush=True); input()"
    environment = {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=pipe, stdout=pipe, text=True)
    assert other.stdout is not None
    path = Path(other.stdout.readline().strip())
    clear_abandoned()
    assert path.exists()  # its owner lives
    other.kill()
    other.communicate()
    clear_abandoned()
    assert not path.exists()


def test_odd_things_of_that_name_are_left_alone(tmp_path: Path):
    (tmp_path / f"{PREFIX}file").write_text("x")
    (tmp_path / f"{PREFIX}plain").mkdir()
    (tmp_path / f"{PREFIX}link").mkdir()
    (tmp_path / f"{PREFIX}link" / OWNER).symlink_to(tmp_path / f"{PREFIX}file")
    clear_abandoned()
    assert len(list(tmp_path.iterdir())) == 3


def test_sealed_memory_is_read_and_never_written():
    descriptor = sealed(lambda stream: stream.write(b"theirs"))
    with open(f"/dev/fd/{descriptor}", "rb") as stream:
        assert stream.read() == b"theirs"
    for write in (
        lambda: os.pwrite(descriptor, b"mine", 0),
        lambda: os.truncate(descriptor, 0),
        lambda: mmap.mmap(descriptor, 6, mmap.MAP_SHARED),
        lambda: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0),
    ):
        with pytest.raises(PermissionError):
            write()
    mapped = mmap.mmap(descriptor, 6, mmap.MAP_PRIVATE)
    mapped[:4] = b"mine"  # a copy
    assert os.pread(descriptor, 6, 0) == b"theirs"
    os.close(descriptor)


def test_a_file_is_sealed_once_the_system_is_no_longer_busy(monkeypatch: pytest.MonkeyPatch):
    """It is where a page of it moves just now, as where memory is short."""
    asked, seal = [errno.EBUSY, errno.EBUSY, errno.EPERM], fcntl.fcntl

    def busy(descriptor: int, *what: int) -> int:
        if asked and what[0] == fcntl.F_ADD_SEALS:
            raise OSError(asked.pop(0), "busy")
        return seal(descriptor, *what)

    monkeypatch.setattr(fcntl, "fcntl", busy)
    with pytest.raises(PermissionError):
        sealed(lambda stream: stream.write(b"theirs"))
    asked[:] = [errno.EBUSY, errno.EBUSY]
    os.close(sealed(lambda stream: stream.write(b"theirs")))
    assert not asked
    monkeypatch.setattr("harness.processes._process.SEAL_S", 0.0)
    asked[:] = [errno.EBUSY] * 2
    with pytest.raises(OSError, match="busy"):
        sealed(lambda stream: stream.write(b"theirs"))


def test_where_nothing_is_sealed_it_is_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(_process, "CAN_SEAL", False)
    descriptor = sealed(lambda stream: stream.write(b"theirs"))
    assert (os.pread(descriptor, 9, 0), list(tmp_path.iterdir())) == (b"theirs", [])
    os.close(descriptor)


def test_nobody_cuts_short_what_is_written_and_read_at_once():
    descriptor = sized(6)
    os.pwrite(descriptor, b"theirs", 0)
    assert os.pread(descriptor, 9, 0) == b"theirs"
    for size in (0, 5, 7):
        with pytest.raises(PermissionError):
            os.truncate(descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(descriptor)


def test_what_cannot_be_written_leaves_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TypeError):
        sealed(lambda stream: stream.write(3))
    assert len(os.listdir("/proc/self/fd")) == before
