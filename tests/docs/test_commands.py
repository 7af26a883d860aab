"""Commands of README and docs: each is one that this version has, with options that it has; what can run here is run.

Not run here, and why: `NOT_HERE`. The tutorial's commands have tests/docs/test_tutorial.py.
"""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from harness.__main__ import app
from tests.docs.pages import PAGES, ROOT, commands, run

# Programs of other people, which these pages only mention.
OTHERS = {
    "cd", "export", "git", "pip", "ruff", "mypy", "python3", "printf", "rm", "sed", "dask", "ssh", "scp", "srun",
    "sbatch", "sqlite3", ".",
}  # fmt: skip
# What stands in a line that no test runs as it is, and why.
NOT_HERE = {
    "--device cuda": "needs a GPU",
    "var_d30.pth": "needs checkpoints of the published size",
    "--checkout": "needs a checkout of published code; tests/unit/adapters runs the same on stand-ins",
    "tox": "is how tests are run",
    "pip install": "installs",
    "--install-completion": "writes into the user's shell profile; tests/unit/commands/test_everything.py asks for it",
}
PLACEHOLDERS = re.compile(r"…|\.\.\.")


@cache
def pytest_help() -> str:
    words = [sys.executable, "-m", "pytest", "tests/property", "--help", "-p", "no:cacheprovider"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@cache
def environments() -> set[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return {name.partition(":")[2] for name in parser.sections()}


def wrong(words: list[str]) -> str:
    """Return why a command cannot be typed like that; empty where it can."""
    while words and re.fullmatch(r"\w+=\S*", words[0]):  # NAME=value before a command
        words = words[1:]
    if words[:2] == ["python", "-m"] and words[2:3] != ["harness"]:
        words = words[2:]
    if words[:3] == ["python", "-m", "harness"]:
        words = ["sdvar-harness", *words[3:]]
    program, rest = (words[0], words[1:]) if words else ("", [])
    if program == "sdvar-harness":
        return unparsed(rest)
    if program == "pytest":
        missing = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in pytest_help()]
        return f"pytest has no {missing[0]}" if missing else ""
    if program == "tox":
        named = [word for before, word in pairwise(rest) if before == "-e"]
        return f"tox has no {named[0]}" if named and named[0] not in environments() else ""
    if program.startswith("scripts."):  # python -m
        path = ROOT / f"{program.replace('.', '/')}.py"
        text = path.read_text() if path.exists() else ""
        missing = [word for word in rest if word.startswith("--") and f'"{word}"' not in text]
        return "" if text and not missing else f"{program} has no {missing or 'file'}"
    if program == "python":
        return "" if rest and (rest[0] == "-c" or (ROOT / rest[0]).exists()) else f"python has no {rest[:1]}"
    return "" if program in OTHERS or not program else f"{program} is no program that is known"


def unparsed(words: list[str]) -> str:
    """Return what `sdvar-harness` would say of its arguments; empty where it takes them."""
    if any(word.startswith(("--install-completion", "--version", "--help")) for word in words):
        return ""
    command = typer.main.get_command(app)
    rest = [word for word in words if not PLACEHOLDERS.fullmatch(word)]
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return f"no command {rest[:1]}"
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        command.make_context(command.name, list(rest))
    except Exception as error:
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_can_be_typed(page: Path):
    found = [(" ".join(words), wrong(words)) for words in commands(page)]
    assert [each for each in found if each[1]] == []


@pytest.mark.parametrize(
    "line",
    [
        "sdvar-harness verfy", "sdvar-harness verify --seed 3", "sdvar-harness verify --cfg much", "frobnicate",
        "pytest --sdvar-what", "tox -e nowhere", "python nowhere.py", "scripts.nowhere", "scripts.scoreboard --what",
    ],
)  # fmt: skip
def test_a_command_that_nobody_has_is_seen(line: str):
    assert wrong(line.split())


def runnable(page: Path) -> list[str]:
    """Return the lines of a page that a test can run as they are."""
    lines = [" ".join(words) for words in commands(page)]
    ours = [line for line in lines if line.startswith(("sdvar-harness", "pytest --sdvar"))]
    return [line for line in ours if not any(mark in line for mark in NOT_HERE)]


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "pytest.md"], ids=lambda page: page.name)
def test_what_can_be_run_here_is(page: Path, tmp_path: Path):
    assert run("sdvar-harness init mydecoder.py", tmp_path).returncode == 0
    (tmp_path / "mypkg.py").write_text("from harness import build_decoder as factory\n")
    lines = runnable(page)
    assert lines
    for line in lines:
        done = run(line.replace("pytest --sdvar", "python -m pytest --sdvar"), tmp_path)
        expected = 1 if "harness.mutants." in line else 0  # a planted bug is there to be found
        assert done.returncode == expected, f"{line}\n{(done.stdout + done.stderr)[-3000:]}"
