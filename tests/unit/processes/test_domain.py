"""The domain of a process, where the system has it: it writes to its own folders, and reaches nobody outside."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.processes import _keeper as domain
from harness.processes._keeper import domain_version, is_refused_connection, refused_write
from harness.processes._process import Log, Place, Process

HERE = "tests.unit.processes.test_domain"
needs_it = pytest.mark.skipif(not domain_version(), reason="the system has no Landlock of version 6")


def run(serve: str, own: Path, *words: object, connects: bool = True) -> str:
    """Return how a function ended in a process that may write to one folder, with what it said last."""
    log = Log()
    process = Process(f"{HERE}:{serve}", words, [], log, Place(writable=(str(own),), connects=connects))
    death, said = process.death(), log.last_lines(1)
    process.end()
    log.close()
    return death if death == "ended with status 0" else f"{death}: {said}"


def works(own: str) -> None:
    place = Path(own)
    (place / "a").mkdir()
    (place / "a" / "file").write_text("x")
    (place / "a" / "file").rename(place / "moved")
    (place / "moved").unlink()
    (place / "a").rmdir()
    Path("/dev/null").write_text("x")
    for shared in (Path("/dev/shm/sdvar-test-domain"),):
        shared.write_text("x")
        shared.unlink()
    memory = os.memfd_create("x")
    with open(f"/dev/fd/{memory}", "w") as stream:
        stream.write("x")
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("named")  # as CUDA names its threads
    assert subprocess.run(["true"], check=True).returncode == 0
    child = subprocess.Popen(["sleep", "100"])
    child.kill()
    child.wait()


def writes(path: str) -> None:
    wrapped = ValueError("of its own")
    try:
        Path(path).write_text("mine")
    except PermissionError as error:
        before = refused_write(wrapped)
        wrapped.__cause__ = error
        raise SystemExit(before + refused_write(wrapped)) from None


def removes(path: str) -> None:
    Path(path).unlink()


def reads(path: str) -> None:
    assert Path(path).read_text() == "theirs"


def pokes(process: str, address: str) -> None:
    """Write into somebody's memory, in each of the ways there are."""
    try:
        with open(f"/proc/{process}/mem", "r+b", buffering=0) as memory:
            memory.seek(int(address))
            memory.write(b"mine!!")
    except PermissionError:
        assert ctypes.CDLL(None).ptrace(16, int(process), 0, 0) == -1
        raise SystemExit("refused") from None


def kills(process: str) -> None:
    os.kill(int(process), signal.SIGKILL)


def connects() -> None:
    """Connect to a server of one's own, and say whether that was refused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            socket.create_connection(server.getsockname()).close()
        except OSError as error:
            wrapped = ValueError("of its own")
            wrapped.__cause__ = error
            raise SystemExit(f"{is_refused_connection(wrapped)}{refused_write(wrapped)}") from None


@needs_it
def test_it_works_in_its_folder(tmp_path: Path):
    assert run("works", tmp_path, tmp_path) == "ended with status 0"


@needs_it
def test_outside_it_reads_and_does_not_write(tmp_path: Path):
    own, file = tmp_path / "own", tmp_path / "file"
    own.mkdir()
    file.write_text("theirs")
    assert run("reads", own, file) == "ended with status 0"
    assert run("writes", own, file) == f"ended with status 1: ['{file}']"
    assert run("writes", own, tmp_path / "new") == f"ended with status 1: ['{tmp_path / 'new'}']"
    assert "PermissionError" in run("removes", own, file)
    assert run("writes", own, f"/proc/{os.getpid()}/comm").startswith("ended with status 1")
    assert (file.read_text(), sorted(path.name for path in tmp_path.iterdir())) == ("theirs", ["file", "own"])


@needs_it
def test_it_reaches_no_process_outside(tmp_path: Path):
    memory = ctypes.create_string_buffer(b"theirs")
    assert run("pokes", tmp_path, os.getpid(), ctypes.addressof(memory)) == "ended with status 1: ['refused']"
    assert memory.value == b"theirs"
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    assert "PermissionError" in run("kills", tmp_path, other.pid)
    assert other.poll() is None
    other.kill()
    other.wait()


@needs_it
def test_it_connects_to_others_where_it_may(tmp_path: Path):
    assert run("connects", tmp_path) == "ended with status 0"
    assert run("connects", tmp_path, connects=False) == "ended with status 1: ['True']"
    assert not is_refused_connection(PermissionError(13, "of another process"))


def test_without_a_domain_it_can_do_all_that(tmp_path: Path):
    """What the others see is the domain's doing."""
    log = Log()
    process = Process(f"{HERE}:writes", [tmp_path / "new"], [], log)
    assert process.death() == "ended with status 0"
    process.end()
    log.close()
    assert (tmp_path / "new").read_text() == "mine"


@pytest.mark.parametrize("version", [-1, 0, 1, 5])
def test_half_a_domain_is_none(version: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(domain, "_call", lambda number, *words: version)
    assert domain_version() == 0
    assert not domain.enter_domain([])
    assert refused_write(PermissionError(13, "no", "/etc/passwd")) == ""
