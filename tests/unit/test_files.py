"""Files: inputs that are none are never opened, outputs are whole, on the disk, and keep what they replace alike."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import InputError, one_line, shortened, shown, text_of
from harness.files import check_outputs, check_readable, check_writable, compact, write_whole

LONG = "n" * 300


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def loop(path: Path) -> None:
    path.symlink_to(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file; "),
    "folder": (Path.mkdir, "no such file (there is a folder); "),
    "pipe": (fifo, "no such file (there is a pipe); "),
    "socket": (unix_socket, "no such file (there is a socket); "),
    "device": (device, "no such file (there is a device); "),
    "loop": (loop, "cannot be read (Too many levels of symbolic links); "),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_unopened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket has 108 characters at most
    make, rule = NO_FILES[kind]
    make(Path("x"))
    with pytest.raises(InputError) as caught:
        check_readable(Path("x"), "draft", "pass --draft FILE")
    assert str(caught.value) == f"draft=x: {rule}pass --draft FILE"


def test_a_name_that_is_too_long_is_bad_input(tmp_path: Path):
    for check in (lambda path: check_readable(path, "json", "…"), lambda path: check_writable(path, "json")):
        with pytest.raises(InputError, match=r"\(File name too long\); "):
            check(tmp_path / LONG)


def test_a_name_as_long_as_the_system_takes_can_be_written(tmp_path: Path):
    path = tmp_path / ("n" * 255)
    check_writable(path, "json")
    write_whole(path, b"x")
    assert path.read_bytes() == b"x"


def test_an_output_behind_a_loop_or_a_broken_folder_is_refused_at_the_start(tmp_path: Path):
    loop(tmp_path / "loop")
    with pytest.raises(InputError, match=r"cannot be written \(Too many levels of symbolic links\)"):
        check_writable(tmp_path / "loop", "json")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "file")
    with pytest.raises(InputError, match=r"folder .*nowhere is not there"):
        check_writable(tmp_path / "link", "json")


def test_relative_outputs_keep_the_folder_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert check_outputs({"json": Path("a"), "out": None}, {}) == {"json": tmp_path / "a"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk, in order."""
    made: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        made.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def noted_replace(old: str, new: str) -> None:
        made.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return made


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_folder_after(tmp_path: Path, calls: list[str]):
    write_whole(tmp_path / "file", b"x")
    assert calls == ["file", "replace", "folder"]


def test_a_replaced_file_keeps_mode_and_owner(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    if os.geteuid() == 0:  # nobody else gives a file away
        os.chown(path, 1234, 2345)
    path.chmod(0o640)
    before = path.stat()
    write_whole(path, b"new")
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path):
    write_whole(tmp_path / "made", b"")
    (tmp_path / "usual").touch()
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"output=.*file: cannot be written \(File too large\); make room there"):
            write_whole(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_of_any_text_can_be_written():
    assert compact({"detail": "\udcff"}) == b'{\n "detail": "\\udcff"\n}\n'


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def test_an_error_without_words_is_named_by_its_type():
    assert text_of(MuteError()) == "MuteError"
    assert text_of(ValueError()) == "ValueError"
    assert shown(MuteError()) == "(MuteError that cannot be shown)"
    assert str(InputError("seed", 10**5000, "is large", "take less")).startswith("seed=(int that cannot be shown): is")


def test_a_line_holds_no_control_character_and_ends_with_the_remedy():
    said = str(InputError("name", "a\x1b[31m\x00b\nc\u202e", "rule", "remedy"))
    assert said == "name=a\\x1b[31m\\x00b c\\u202e: rule; remedy"
    assert one_line("Δφ 1") == "Δφ 1"
    long = shortened("x" * 10**6 + "; remedy", 500)
    assert (len(long), long[-8:]) == (500, "; remedy")
    assert shortened("x" * 500, 500) == "x" * 500
