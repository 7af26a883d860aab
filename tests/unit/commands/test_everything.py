"""What belongs to no single command: version, completion, silence, warnings once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from tests.helpers import command

ROOT = Path(__file__).parents[3]
LOUD = """
import os, warnings
from harness import build_decoder

class Loud:
    contract = "token-identical"

    def __init__(self, own):
        self.own = own

    def decode(self, request, noise):
        print("chatter")
        os.write(1, b"chatter below\\n")
        with warnings.catch_warnings():  # as libraries do: Python then forgets what it has shown
            warnings.simplefilter("error")
        warnings.warn("worth saying once", stacklevel=1)
        return self.own.decode(request, noise)

def factory(models, settings):
    return Loud(build_decoder(models, settings))
"""
ASKED = (
    "verify", "--implementation", "loud:factory", "--in-process", "--labels", "0", "--seeds", "0:2", "--batch", "1",
    "--draft-len", "5",
)  # fmt: skip


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert command(monkeypatch, "--version") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"sdvar-harness {harness.__version__}, python 3.")
    assert "torch " in said


def test_completion_is_offered(tmp_path: Path):
    (tmp_path / "sdvar-harness").write_text("from harness.__main__ import main\nmain()\n")
    asked = {
        "_SDVAR_HARNESS_COMPLETE": "complete_bash",
        "COMP_WORDS": "sdvar-harness verify --draft-",
        "COMP_CWORD": "2",
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **asked}
    words = [sys.executable, str(tmp_path / "sdvar-harness")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    assert {"--draft-len", "--draft-noise"} <= set(done.stdout.split())
    assert done.stderr == ""


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path):
    (tmp_path / "gone").mkdir()
    said = f"import os; os.chdir({str(tmp_path / 'gone')!r}); os.rmdir(os.getcwd()); import sys; " + (
        f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['sdvar-harness', 'verify']; "
        "from harness.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", said], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: folder=.: is the current folder, and not there any more ("), done.stderr


def run_loud(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "loud.py").write_text(LOUD)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "harness", *ASKED, *words], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_quiet_is_the_verdict_alone_whatever_the_decoder_prints(tmp_path: Path):
    done = run_loud(tmp_path, "--quiet")
    assert done.returncode == 0
    assert done.stdout.startswith("IDENTICAL contract token-identical: 2 decodes")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_warning_is_shown_once(tmp_path: Path):
    done = run_loud(tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("chatter below") == 2
    assert done.stderr.count("UserWarning: worth saying once") == 1, done.stderr
