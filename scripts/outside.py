"""See an installed package from outside: digits verified, and a project of five lines tested, without this repository.

    python scripts/outside.py EMPTY-FOLDER

Promise: it ends with 0 only if a right decoder passes and a wrong one fails by the name of its law and component, known
failures work, and an unexpected pass fails. `tox -e package` runs it on the wheel, `tox -e sdist` on the archive.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RIGHT = """from harness import build_decoder


def factory(models, settings):
    return build_decoder(models, settings)
"""
WRONG = RIGHT.replace("harness import build_decoder", "harness.mutants.positions import OFFSET as build_decoder")
NAME = ("--sdvar-implementation", "mypkg:factory", "--sdvar-examples", "3", "--sdvar-shrink-seconds", "1")
WRONG_SET = ("-k", "positions.query or positions.split or close-2")


def said(folder: Path, status: int, *words: str) -> str:
    """Run a command in a folder, and return what it prints. Raises `SystemExit` for another exit status."""
    print("$", " ".join(words), flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != status:
        raise SystemExit(f"exit status {done.returncode}, not {status}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def require(text: str, *wanted: str) -> None:
    """Raise `SystemExit` unless all are in the text."""
    missing = [word for word in wanted if word not in text]
    if missing:
        raise SystemExit(f"not said: {missing}\n{text[-3000:]}")


def main(folder: Path) -> None:
    """See all that is promised."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty")
    python, command = sys.executable, str(Path(sys.executable).with_name("sdvar-harness"))
    home = said(folder, 0, python, "-c", "import harness; print(harness.__file__)")
    if Path(home.strip()).is_relative_to(Path(__file__).parents[1].resolve() / "harness"):
        raise SystemExit(f"this is the repository's own package, not an installed one: {home}")
    require(said(folder, 0, command, "--version"), "sdvar-harness ")
    require(said(folder, 0, command, "verify", "--seeds", "0:1", "--labels", "0,1", "--draft-len", "2"), "IDENTICAL")
    test = (python, "-m", "pytest", "-p", "no:cacheprovider", "-q", *NAME)
    (folder / "mypkg.py").write_text(RIGHT)
    laws = int(said(folder, 0, python, "-c", "from harness.laws._conformance import LAWS; print(len(LAWS))"))
    right = said(folder, 0, *test, "-n", "2")  # the laws, and four cases on digits
    require(right, f"{laws + 4} passed", "digits[close-2]                  5 images, IDENTICAL")
    (folder / "mypkg.py").write_text(WRONG)
    found = said(folder, 1, *test, *WRONG_SET)
    require(found, "law positions.query is broken", "watches: build_combined_query", "2 failed, 1 passed")
    require(found, "sdvar::digits[close-2] - DEFECT: component positions")  # whatever folder pytest begins at
    known = folder / "known.toml"
    known.write_text('"positions.query" = "off by one"\n"digits[close-2]" = "off by one"\n')
    listed = ("--sdvar-known-failures", "known.toml")
    require(said(folder, 0, *test, *WRONG_SET, *listed), "1 passed", "2 xfailed")
    (folder / "mypkg.py").write_text(RIGHT)
    require(said(folder, 1, *test, *WRONG_SET, *listed), "[XPASS(strict)] off by one", "2 failed, 1 passed")
    print("all of it holds")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
