"""`bisect`: the first commit on which a decoder fails, in few runs, and nothing of the user's touched."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.published.checkout import make
from tests.unit.commands.running import run
from tests.unit.judge.planted_lines import TEMPLATE, TEN

FEW = ("--seeds", "1", "--labels", "0")


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(("git", "-C", str(folder), *who, *words), check=True, capture_output=True, text=True).stdout


def repository(folder: Path, texts: Iterable[str], name: str = "decoder_in_history.py") -> list[str]:
    """Make a commit of every text of a file; return the commits."""
    folder.mkdir(exist_ok=True)
    git(folder, "init", "--quiet")
    commits = []
    for text in texts:
        (folder / name).write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--allow-empty", "-m", f"change {len(commits)}")
        commits.append(git(folder, "rev-parse", "HEAD").strip())
    return commits


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a folder for a repository, which is the current one."""
    (tmp_path / "history").mkdir()
    monkeypatch.chdir(tmp_path / "history")
    return tmp_path / "history"


TESTED = ("bisect", "--implementation", "decoder_in_history:factory", "--checkout", ".")


@pytest.mark.slow
def test_the_first_of_a_hundred_is_found_in_nine_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, history: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    texts = [TEMPLATE if n < 63 else TEN[0].source for n in range(101)]
    commits = repository(history, [f"{text}\n# {n}\n" for n, text in enumerate(texts)])
    ran = history / "hook-ran"
    for name in ("post-checkout", "post-commit"):
        hook = history / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
        hook.chmod(0o755)
    before, out = state_of(history), str(tmp_path / "found.json")
    assert run(monkeypatch, *TESTED, *pair, *FEW, "--good", commits[0], "--json", out) == 0
    said, found = capsys.readouterr().out, json.loads(Path(out).read_text())
    assert "change 63" in said
    assert f"decoder_in_history.py:{TEN[0].lines[0]}, in inputs" in said
    assert found["commit"] == commits[63]
    assert found["runs"] <= 9
    assert state_of(history) == before
    assert not ran.exists()


def test_what_cannot_be_built_is_skipped_and_a_good_one_that_fails_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, history: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    bad = TEN[0].source
    commits = repository(history, [TEMPLATE, "def factory(:\n", bad, f"{bad}#\n"])
    out = str(tmp_path / "found.json")
    assert run(monkeypatch, *TESTED, *pair, *FEW, "--good", commits[0], "--json", out) == 3
    said, found = capsys.readouterr().out, json.loads(Path(out).read_text())
    assert "first bad commit:" in said
    assert found["commit"] == commits[2]
    assert list(found["skipped"]) == [commits[1]]
    assert "may be it, too:" in said
    assert run(monkeypatch, *TESTED, *pair, *FEW, "--good", commits[2]) == 2
    assert f"good={commits[2][:12]}: fails as the bad one does; pass a commit on which" in capsys.readouterr().err
    repository(history, [TEMPLATE])
    assert run(monkeypatch, *TESTED, *pair, *FEW, "--bad", commits[3], "--good", "HEAD") == 2
    assert f"bad={commits[3][:12]}: is no later than a good one" in capsys.readouterr().err


def test_a_defect_that_is_older_than_the_branch_of_its_mending(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, history: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    bad, out = TEN[0].source, str(tmp_path / "found.json")
    first, parted = repository(history, [TEMPLATE, bad])
    git(history, "checkout", "--quiet", "-b", "mended")
    mended = repository(history, [TEMPLATE])[0]
    git(history, "checkout", "--quiet", "-b", "later", parted)
    repository(history, [f"{bad}#\n"])
    assert run(monkeypatch, *TESTED, *pair, *FEW, "--good", mended) == 2
    said = f"good={mended[:12]}: is on another branch, and {parted[:12]}, where they part, is not good"
    assert said in capsys.readouterr().err
    git(history, "checkout", "--quiet", "--orphan", "alone")
    other = repository(history, [TEMPLATE])[0]
    assert run(monkeypatch, *TESTED, *pair, *FEW, "--good", other, "--bad", "later") == 2
    assert f"good={other[:12]}: has no commit in common with" in capsys.readouterr().err
    assert run(monkeypatch, *TESTED, *pair, *FEW, "--good", first, "--bad", "later", "--json", out) == 0
    found = json.loads(Path(out).read_text())
    assert found["commit"] == parted
    assert found["line"]["file"] == "decoder_in_history.py"
    assert found["line"]["stack"][0].startswith("decoder_in_history.py:")


def test_published_code_and_a_folder_within_a_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, history: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    checkout = make(history, "var").rename(history / "inner")
    source = (checkout / "models" / "network.py").read_text()
    assert "else cfg * si" in source
    commits = repository(history, ["1", "2"], "note.txt")
    (checkout / "models" / "network.py").write_text(source.replace("else cfg * si", "else 1.1 * cfg * si"))
    commits += repository(history, ["3", "4"], "note.txt")
    tested = ("bisect", "--implementation", "published:var", "--checkout", "inner")
    assert run(monkeypatch, *tested, *pair, *FEW, "--good", commits[0]) == 0
    said = capsys.readouterr().out
    assert "first bad commit:" in said
    assert "change 0" in said
    assert "line: network.py:" in said
    assert ", in guided: " in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--good", "nowhere"), "good=nowhere: is no commit of "),
        ((), "good=None: must name a commit that does not fail; pass --good REV"),
        (("--good", "HEAD", "--implementation", "harness:build_decoder"), "pass --implementation NAME and --checkout"),
    ],
)
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, history: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...],
    message: str,
):  # fmt: skip
    repository(history, [TEMPLATE])
    assert run(monkeypatch, *TESTED, *words) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_repository_is_refused(
    monkeypatch: pytest.MonkeyPatch, history: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, *TESTED, "--good", "HEAD") == 2
    assert "git rev-parse fails: fatal: not a git repository" in capsys.readouterr().err
