"""All planted bugs, and the hunt for them with the laws.

Promise: a bug is caught only by a violation in a case in which the correct decoder breaks no law; the case shown is the
simplest that the search found. A bug that no law of its family catches has survived, whatever other laws
say. The bugs are whatever the families' modules name, in the order in which they do.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Self

import torch

from harness.judge import Verdict
from harness.laws import LAWS, Case, CaseList, Law, Subject, Violation, fixed_cases, try_law
from harness.mutants._mutant import Mutant, production

WORDS = (
    "positions", "guidance", "masks", "state", "reuse", "randomness", "streams", "acceptance", "rules",
    "windows", "work", "batch", "sensitivity", "numbers",
)  # fmt: skip
FAMILIES = tuple(import_module(f"harness.mutants.{word}") for word in WORDS)
MUTANTS = tuple(thing for family in FAMILIES for thing in vars(family).values() if isinstance(thing, Mutant))
SCOPES = ("first", "family", "all")


@dataclass
class Caught:
    mutant: Mutant  # the planted bug
    # the smallest one of every law that caught it, those of its own family first
    violations: list[Violation] = field(default_factory=list)
    tried: int = 0  # laws that were checked
    seconds: float = float("nan")  # from the start to the first violation, its search for a smaller case included
    total_seconds: float = 0.0  # of all laws

    @property
    def own(self) -> list[Violation]:
        return [violation for violation in self.violations if violation.law.family == self.mutant.family]

    @property
    def elsewhere(self) -> list[Violation]:
        return [violation for violation in self.violations if violation.law.family != self.mutant.family]

    @property
    def survived(self) -> bool:
        """Whether no law of its family caught it, or one of another family caught what is its family's alone."""
        return not self.own or (self.mutant.alone and bool(self.elsewhere))

    @property
    def smallest(self) -> Violation | None:
        """The violation on the fewest tokens."""
        return min(self.own, key=lambda violation: violation.case.pyramid.L, default=None)


@dataclass
class Hunt:
    scope: str  # one of `SCOPES`
    examples: int  # cases a law
    seed: int  # of the cases
    device: str  # where the networks are
    dtype: str  # theirs, where a law does not need float64
    found: list[Caught] = field(default_factory=list)  # what the laws said of every mutant
    false_alarms: list[Law] = field(default_factory=list)  # laws that the correct decoder broke

    @property
    def survived(self) -> list[Caught]:
        return [caught for caught in self.found if caught.survived]

    @property
    def verdict(self) -> Verdict:
        """DEFECT, of the laws, when a mutant survived or a law broke on the correct decoder; else IDENTICAL."""
        return Verdict.DEFECT if self.survived or self.false_alarms else Verdict.IDENTICAL


def laws_for(mutant: Mutant, scope: str) -> list[Law]:
    """Return the laws that a scope tries, the mutant's own family first."""
    own = [law for law in LAWS if law.family == mutant.family]
    return own if scope != "all" else own + [law for law in LAWS if law.family != mutant.family]


def hunt(mutant: Mutant, cases: Sequence[Case], scope: str = "family") -> Caught:
    """Check the laws of a scope against one mutant, in cases smallest first; "first" stops at the first violation."""
    caught, start = Caught(mutant), time.perf_counter()
    with mutant.planted():  # once for all laws: networks are made anew each time
        for law in laws_for(mutant, scope):
            row = try_law(law, Subject(mutant), CaseList(cases))
            caught.tried += 1
            if row.violation is not None:
                caught.violations.append(row.violation)
                if len(caught.violations) == 1:
                    caught.seconds = time.perf_counter() - start
                if scope == "first":
                    break
    caught.total_seconds = time.perf_counter() - start
    return caught


@dataclass
class HuntWork:
    """What a worker of a hunt gets; mutants, which may not travel, and laws of the correct decoder are named by id."""

    cases: tuple[Case, ...]  # smallest first
    scope: str  # one of `SCOPES`
    threads: int = 0  # of PyTorch, for a worker; 0 = as they are
    about: None = None  # nobody asks

    def open(self) -> Self:
        if self.threads:
            torch.set_num_threads(self.threads)
        return self

    def do(self, task: tuple[str, str]) -> bool | Caught:
        """Do ("law", id): whether the correct decoder breaks it; or ("mutant", id): see `caught_with_mutant`."""
        kind, name = task
        if kind == "law":
            law = next(law for law in LAWS if law.id == name)
            return try_law(law, Subject(production), CaseList(self.cases)).violation is not None
        mutant = next(mutant for mutant in MUTANTS if mutant.id == name)
        caught = hunt(mutant, self.cases, self.scope)
        return replace(caught, mutant=replace(mutant, build=production, shared={}))

    def close(self) -> None:
        """Nothing is left to end."""


def caught_with_mutant(caught: Caught) -> Caught:
    return replace(caught, mutant=next(mutant for mutant in MUTANTS if mutant.id == caught.mutant.id))


def hunting_cases(examples: int, seed: int = 0, device: str = "cpu", dtype: str = "float64") -> list[Case]:
    """Return the cases of a hunt on a device; `dtype` is that of the networks where a law does not need float64."""
    return [replace(case, device=device, dtype=dtype) for case in fixed_cases(examples, seed)]
