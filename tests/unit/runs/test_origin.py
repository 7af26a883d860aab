"""Files of others: what they name runs where their reader says so, never in this process; git executes nothing."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness import InputError, ModelPair, Request, Settings, Terms
from harness.provenance import git_says
from harness.runs import _database as origin
from harness.runs._case import KeptCase, cases_of
from harness.runs._database import check_trusted, origin_mark
from harness.runs._decodes import Decodes, verify_decodes
from harness.runs._identity import code_of
from harness.runs._plan import Plan
from harness.runs._runfile import RunFileOptions
from tests.bent import Bent, _wrong
from tests.helpers import Layout, command, tiny

MODELS = tiny(Layout((1, 2, 3)))


def wrong(models: ModelPair, settings: Settings) -> Bent:
    return Bent(models, settings, _wrong)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.db"
    plan = Plan.of([Settings(2)], [Request((0,))])
    factory = "tests.unit.runs.test_origin:wrong"
    verify_decodes(MODELS, Decodes(factory, plan, Terms(in_process=True)), store=RunFileOptions(path, recipe={}))
    return path


def first(path: Path) -> KeptCase:
    return cases_of(path)[0]


def test_a_file_of_ones_own_is_known_again(file: Path):
    assert first(file).is_own
    assert not first(file).terms.in_process  # the run said so, and the file does not decide


@pytest.mark.parametrize("what", ["machine", "start", "user"])
def test_a_file_from_elsewhere_is_known_too(what: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "machine").write_text("another" * 8)
    (tmp_path / "start").write_text("4" * 36)
    if what == "user":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:
        monkeypatch.setattr(origin, "MACHINE", (tmp_path / what, Path("/etc/machine-id")))
    assert not first(file).is_own


@pytest.mark.parametrize("id_", [None, "", "uninitialized\n"])
def test_an_image_without_an_id_knows_its_files_until_it_restarts(
    id_: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    machine, start = tmp_path / "machine", tmp_path / "start"
    if id_ is not None:
        machine.write_text(id_)
    start.write_text("4" * 36)
    monkeypatch.setattr(origin, "MACHINE", (machine, start))
    mark = origin_mark(["a"])
    assert origin_mark(["a"]) == mark
    start.write_text("5" * 36)
    assert origin_mark(["a"]) != mark
    start.unlink()
    assert origin_mark(["a"]) != origin_mark(["a"])


def test_a_mark_is_of_what_is_named():
    assert origin_mark(["a", "bc"]) not in {origin_mark(["ab", "c"]), origin_mark(["a", "bd"]), origin_mark(["a"])}


@pytest.mark.parametrize(
    ("named", "given", "words"),
    [
        ([("a:b", "")], [None, None], "a:b"),
        ([("os:system", "/c")], [None, None], "os:system, checkout /c"),
        ([("published:var", "/c"), ("x:y", "")], [Path("/d"), None], "x:y"),
        ([("published:var", "/c"), ("published:var", "/e")], [Path("/d"), None], "checkout /e"),
    ],
)
def test_what_it_names_is_shown_and_asked_for(named: list[tuple[str, str]], given: list[Path | None], words: str):
    rule = (
        f"file=x.sdvar: comes from elsewhere, and names code that would run here: {words}; look at that code, and pass"
    )
    with pytest.raises(InputError) as error:
        check_trusted(Path("x.sdvar"), named, given)
    assert str(error.value) == f"{rule} --trust"


def test_the_harness_itself_needs_no_trust():
    check_trusted(Path("x"), [("harness:build_decoder", ""), ("published:var", "/c")], [None, Path("/d")])


def test_replay_asks_before_anything_of_it_runs(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(origin, "MACHINE", (file,))  # now it is somebody else's
    assert command(monkeypatch, "replay", str(file)) == 2
    assert "names code that would run here: tests.unit.runs.test_origin:wrong; " in capsys.readouterr().err


def repository(folder: Path, mark: Path) -> None:
    """Make a repository that executes what it can, where git lets it."""
    run = f"sh -c 'echo x >> {mark}; cat'"
    (folder / "code.py").write_text("x = 1\n")
    (folder / ".gitattributes").write_text("*.py filter=mine\n")
    settings = {
        "user.name": "x", "user.email": "x@example.org", "core.fsmonitor": f"sh -c 'echo x >> {mark}'",
        "filter.mine.clean": run, "filter.mine.process": run, "core.hooksPath": str(folder / "hooks"),
        "core.pager": run, "diff.external": run,
    }  # fmt: skip
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    plain = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, *plain, "commit", "-qm", "x"], check=True)
    for name, value in settings.items():
        subprocess.run([*git, "config", name, value], check=True)
    (folder / "hooks").mkdir()
    (folder / "hooks" / "post-index-change").write_text(f"#!/bin/sh\necho x >> {mark}\n")
    (folder / "hooks" / "post-index-change").chmod(0o755)
    (folder / "code.py").write_text("x = 2\n")


def test_git_executes_nothing_of_a_repository(tmp_path: Path):
    mark, folder = tmp_path / "mark", tmp_path / "there"
    folder.mkdir()
    repository(folder, mark)
    code = code_of("published:var", str(folder))
    assert (len(code.commit), code.changed, mark.exists()) == (40, True, False)
    subprocess.run(["git", "-C", str(folder), "status"], check=False, capture_output=True)
    assert mark.exists()  # the plant is one


def test_what_is_no_repository_has_no_commit(tmp_path: Path):
    with pytest.raises(subprocess.SubprocessError):
        git_says(tmp_path, "rev-parse", "HEAD")
    assert replace(code_of("published:var", str(tmp_path)), source="").commit == ""
