"""A workplace: a process may wait there for its work, holds nothing until it has it, and ends where nobody has any."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from harness.processes import GoneError, given, sealed, started_ahead, workplace_for
from harness.processes._workplace import _AHEAD, Workplace, own_place

SERVE = "tests.unit.processes.test_workplace:reads"


def reads(word: str, line: str) -> None:
    """Say what it was started with, and of each open file that it is given what is in it and who else would get it."""
    os.write(int(line), json.dumps([word, os.getpid(), os.environ["TMPDIR"]]).encode() + b"\n")
    files = [(os.pread(each, 9, 0).decode(), os.get_inheritable(each)) for each in given(int(line))]
    os.write(int(line), json.dumps(files).encode() + b"\n")


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))


def waits() -> Workplace:
    (each,) = _AHEAD.values()
    return each


def test_one_that_was_started_ahead_serves_who_asks_on_its_terms_and_nobody_else(tmp_path: Path):
    with started_ahead(SERVE, "w", [str(tmp_path)]):
        ahead = waits()
        for serve, allowed, connects in (
            (SERVE, [], True), (SERVE, [str(tmp_path)], False), ("os:abort", [str(tmp_path)], True)
        ):  # fmt: skip
            with closing(workplace_for(serve, "w", allowed, connects)) as other:
                assert (other is ahead, waits()) == (False, ahead)
        with closing(workplace_for(SERVE, "v", [str(tmp_path)], True)) as asked:
            assert asked is ahead
            with closing(workplace_for(SERVE, "v", [str(tmp_path)], True)) as again:
                assert again is not ahead


def test_a_user_without_a_home_has_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert dict(own_place(tmp_path, [], connects=True).environment)["XDG_CACHE_HOME"] == str(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_nothing_stays_of_one_that_nobody_asked_for(tmp_path: Path):
    with started_ahead(SERVE, "w", []):
        line = waits()._waiting
        assert line is not None
        assert line.process.is_alive
    assert (line.process.is_alive, _AHEAD, list((tmp_path / "t").iterdir())) == (False, {}, [])


def test_it_is_given_open_files_which_it_passes_on_to_nobody(tmp_path: Path):
    """And those that come after it in the same workplace likewise, in a process of their own."""
    files, pids = [sealed(lambda stream, k=k: stream.write(b"file %d" % k)) for k in (1, 2)], set()
    with closing(Workplace(SERVE, "w", [])) as workplace:
        for _ in range(2):
            line = workplace.line()
            word, pid, folder = json.loads(line.hear(30, "w"))
            assert (word, Path(folder).parents[1]) == ("w", tmp_path / "t")
            pids.add(pid)
            line.give(files)
            assert json.loads(line.hear(30, "w")) == [["file 1", False], ["file 2", False]]
            with pytest.raises(GoneError, match="ended with status 0"):
                line.hear(30, "w")
            with pytest.raises(GoneError, match="ended with status 0 before it had its work"):
                line.give(files)
            line.close(0.0)
    assert (len(pids), list((tmp_path / "t").iterdir())) == (2, [])
