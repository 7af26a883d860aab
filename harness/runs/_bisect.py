"""The first commit of a repository on which a recorded defect fails.

Promise: nothing of the user's is written by a search: commits are laid out in folders of their own, of a bare clone
that shares the repository's objects. A commit is bad where the case fails with the component it failed with, good where
it does not fail; one that cannot be built, or fails otherwise, is skipped. What leads to a good commit alone is good
only where the commit from which it parts was seen to be.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import InputError, one_line
from harness.models import ModelPair
from harness.provenance import git_says
from harness.rounding import SHIPPED_BUDGETS
from harness.runs._case import KeptCase, of_checkouts
from harness.runs._replay import first_defect


@dataclass
class CommitStore:
    """A repository's commits, laid out one by one within `place`. Raises `InputError`: it is none."""

    folder: Path  # of the user's, which is read alone; may be a folder within the repository
    place: Path  # empty, and nobody else's

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.top = Path(self._git(self.folder, "rev-parse", "--show-toplevel"))
        self._git(self.top, "clone", "--quiet", "--bare", "--shared", ".", str(self.place / "git"))

    def commit(self, name: str, revision: str) -> str:
        """Return the commit that a revision names. Raises `InputError` where there is none; `name` is the option's."""
        none = InputError(name, revision, f"is no commit of {self.top}", "pass a commit, tag or branch")
        words = "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
        return self._git(self.top, *words, refusal=none)

    def about(self, commit: str) -> str:
        """Return the commit in short, its day and its subject."""
        return self._git(self.top, "log", "-1", "--date=short", "--format=%h (%ad) %s", commit)

    def between(self, good: list[str], bad: str) -> list[str]:
        """List `bad` and what leads to it from no good one, those first that halve them best."""
        said = self._git(self.top, "rev-list", "--bisect-all", bad, *(f"^{each}" for each in good))
        return [line.split()[0] for line in said.splitlines()]

    def parting(self, good: str, bad: str) -> list[str]:
        """List the last commits that lead to both. Raises `InputError` where there is none."""
        rule = f"has no commit in common with {bad[:12]}"
        none = InputError("good", good[:12], rule, "pass a commit that leads to the bad one")
        return self._git(self.top, "merge-base", "--all", good, bad, refusal=none).split()

    @contextmanager
    def laid_out(self, commit: str) -> Iterator[Path]:
        """Return the folder at a commit; meanwhile it is the current one, and modules are found there."""
        tree, path, here = self.place / commit, list(sys.path), Path.cwd().resolve()
        if not tree.exists():
            self._git(self.place / "git", "worktree", "add", "--quiet", "--detach", str(tree), commit)

        def moved(place: Path) -> Path:
            return tree / place.relative_to(self.top) if place.is_relative_to(self.top) else place

        folder = moved(self.folder)
        current = moved(here) if here.is_relative_to(self.folder) else folder
        sys.path[:] = [str(current), *(str(moved(Path(each).resolve())) for each in path)]
        try:
            current.mkdir(parents=True, exist_ok=True)
            with chdir(current):
                yield folder
        finally:
            sys.path[:] = path

    def _git(self, folder: Path, *words: str, refusal: InputError | None = None) -> str:
        try:
            return git_says(folder, *words)
        except (OSError, subprocess.SubprocessError) as error:
            rule = f"git {words[0]} fails: {one_line(str(getattr(error, 'stderr', None) or error))}"
            raise refusal or InputError("checkout", str(self.folder), rule, "pass a repository") from None


@dataclass
class Bisection:
    history: CommitStore
    case: KeptCase  # that fails at the bad one
    models: ModelPair
    runs: int = 1  # verdicts so far, that of the bad one among them
    skipped: dict[str, str] = field(default_factory=dict)  # commit -> why

    def first_bad(self, good: list[str], bad: str) -> list[str]:
        """Return the first bad commit, after it those skipped that may be. Raises `InputError`: a good one is not."""
        for each in good:
            if self.fails(each) is not False:
                rule = self.skipped.get(each, "fails as the bad one does")
                raise InputError("good", each[:12], rule, "pass a commit on which the case does not fail")
            for shared in self.history.parting(each, bad):
                if shared not in (each, bad) and self.fails(shared) is not False:
                    rule = f"is on another branch, and {shared[:12]}, where they part, is not good"
                    raise InputError("good", each[:12], rule, "pass a commit that leads to the bad one")
        while True:
            left = self.history.between(good, bad)
            if bad not in left:
                raise InputError("bad", bad[:12], "is no later than a good one", "pass --bad a later commit")
            commit = next((each for each in left if each != bad and each not in self.skipped), None)
            if commit is None:
                return [bad, *(each for each in left if each != bad)]
            fails = self.fails(commit)
            if fails:
                bad = commit
            elif fails is False:
                good = [*good, commit]

    def fails(self, commit: str) -> bool | None:
        """Tell whether the case fails at a commit as it did; None where that cannot be known: it is skipped."""
        self.runs += 1
        try:
            with self.history.laid_out(commit) as folder:
                defect = first_defect(self.at(folder), self.models, SHIPPED_BUDGETS)
        except InputError as error:
            self.skipped[commit] = str(error)
            return None
        if defect is None or defect.component == self.case.defect.component:
            return defect is not None
        self.skipped[commit] = f"fails otherwise: {defect.brief}"
        return None

    def at(self, folder: Path) -> KeptCase:
        case = replace(self.case, is_own=True)
        return of_checkouts(case, (folder, None)) if case.settings.option("checkout") else case
