"""Commands in Markdown pages, and what stands under them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
INDENTED = re.compile(r"^    ((?:[A-Z_]+=\S+ )?(?:sdvar-harness|pytest|tox) .*)$", re.M)
STATUS = re.compile(r"\[exit status (\d+)\]")


@dataclass(frozen=True)
class Told:
    """A command of a page.

    Args:
        line: the command.
        output: the lines under it; an ellipsis stands for anything.
        status: its exit status.
    """

    line: str
    output: tuple[str, ...] = ()
    status: int = 0


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [text for word, text in FENCE.findall(page.read_text()) if word == language]


def told(page: Path) -> list[Told]:
    """Return the commands of a page's console blocks."""
    found: list[Told] = []
    for block in blocks(page, "console"):
        for command in re.split(r"^\$ ", block, flags=re.M)[1:]:
            line, *rest = command.rstrip("\n").split("\n")
            status = next((int(match[1]) for text in rest if (match := STATUS.fullmatch(text))), 0)
            found.append(Told(line, tuple(text for text in rest if not STATUS.fullmatch(text)), status))
    return found


def commands(page: Path) -> list[list[str]]:
    """Return the words of every command in a page's sh blocks, comments and continuations dealt with."""
    lines = [line for text in blocks(page, "sh") for line in text.replace("\\\n", " ").splitlines()]
    lines += [one.line for one in told(page)]
    lines += INDENTED.findall(FENCE.sub("", page.read_text()))
    words = []
    for line in lines:
        for part in re.split(r"&&|\|", line.partition("  #")[0]):
            if found := shlex.split(part, comments=True):
                words.append(found)
    return words


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line in a folder, with this Python and this package."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    environment = {**os.environ, **ours}
    command = f'sdvar-harness() {{ {sys.executable} -m harness "$@"; }}\n'
    line = line.replace("python -m pytest", f"{sys.executable} -m pytest -p harness.plugin.hooks")
    return subprocess.run(
        ["bash", "-c", command + line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def says(output: str, wanted: tuple[str, ...]) -> str:
    """Return the first line that an output lacks, where it should hold all of them in order; empty where it does."""
    lines = output.splitlines()
    for want in wanted:
        if want == "…":
            continue
        pattern = re.compile(".*".join(re.escape(piece) for piece in want.split("…")))
        at = next((k for k, line in enumerate(lines) if pattern.fullmatch(line.rstrip())), None)
        if at is None:
            return want
        lines = lines[at + 1 :]
    return ""
