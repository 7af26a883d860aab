"""Every law in a few cases, beside a verification: what a trained pair on one pyramid never meets.

Promise: the same cases for everybody; a law that breaks in one of them is a defect. A law that so few cases leave
trivial is told, and no reason for anything: laws are proved by `pytest tests/property` and `run_conformance`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import InputError
from harness.laws.case import CHOICES, Case
from harness.laws.catalogue import LAWS
from harness.laws.conformance import lost
from harness.laws.law import Law, Subject, Violation
from harness.laws.listed import cases, run_law
from harness.laws.results import LawResult
from harness.runs.employ import Crew
from harness.runs.factory import Factory, load_factory, name_of, pickled
from harness.runs.result import LawsBeside
from harness.runs.workers import Died

CASES = 2  # seconds for all laws
SEED = 2  # of the cases: they leave no law trivial for the own decoder (tests/unit/laws/test_beside.py)


@dataclass(frozen=True)
class BesideWork:
    """What a worker gets: a decoder and the cases.

    Args:
        factory: cloudpickle's bytes of it, or the factory itself where it stays in this process.
        options: of the factory.
        tried: cases, smallest first.
    """

    factory: Factory | bytes
    options: tuple[tuple[str, str], ...]
    tried: tuple[Case, ...]

    def open(self) -> _Tried:
        """Return what tries law after law."""
        factory = pickle.loads(self.factory) if isinstance(self.factory, bytes) else self.factory
        return _Tried(Subject(factory, self.options), self.tried)


class _Tried:
    """Tries laws over one decoder."""

    def __init__(self, subject: Subject, tried: Sequence[Case]) -> None:
        self.subject, self.tried = subject, tried
        self.about: dict[str, Any] = {"cases": len(tried)}

    def do(self, law: Law) -> LawResult:
        """Try one law in every case, until one breaks it."""
        return run_law(law, self.subject, cases_for(law, self.tried))

    def close(self) -> None:
        """Nothing is left to end."""


def cases_for(law: Law, tried: Sequence[Case]) -> list[Case]:
    """Return the cases of a law: that of the policies meets every policy, in one case after the other."""
    if law.id != "rules.oracle":
        return list(tried)
    policies = CHOICES["policy"]
    return [replace(tried[k % len(tried)], policy=str(policy)) for k, policy in enumerate(policies)]


def laws_beside(
    implementation: Factory | str,
    count: int = CASES,
    options: tuple[tuple[str, str], ...] = (),
    where: tuple[str, bool] = ("cpu", False),
    progress: Callable[[str], None] = lambda law: None,
) -> LawsBeside:
    """Try every law in a few cases.

    Args:
        implementation: factory of the decoder, or its name.
        count: cases, >= 1: small networks in float64, where rounding decides nothing.
        options: (name, value) for the factory.
        where: device, and whether the decoder has processes of its own, since nobody knows what it does.
        progress: called with the id of every law that is done.

    Returns:
        What they said. A process that a law ends is that law's defect.

    Raises:
        InputError: `count` below 1; no such factory.
    """
    if count < 1:
        raise InputError("laws", count, "must be 1 case or more", f"pass {CASES}, or no laws at all")
    factory = load_factory(implementation) if isinstance(implementation, str) else implementation
    device, apart = where
    crew = Crew((device,) * (2 if apart else 1))
    sent = pickled(factory, name_of(factory)) if crew.is_elsewhere else factory
    tried = tuple(replace(case, device=device) for case in cases(count, SEED))
    rows: dict[str, LawResult] = {}
    with closing(crew.open(BesideWork(sent, options, tried))) as pool:
        for law, row in pool.map(LAWS):
            rows[law.id] = lost(law, row) if isinstance(row, Died) else row
            progress(law.id)
    return said([rows[law.id] for law in LAWS], count)


def said(rows: Sequence[LawResult], count: int) -> LawsBeside:
    """Return what the rows say, as plain values that a file keeps."""
    broken = [(", ".join(v.law.watches), _found(v), v.case.seed) for row in rows if (v := row.violation) is not None]
    return {
        "cases": count,
        "held": sum(row.violation is None and row.exercised > 0 for row in rows),
        "broken": broken,
        "trivial": [row.law.id for row in rows if row.violation is None and row.examples and not row.exercised],
        "refused": [row.law.id for row in rows if row.refused and not row.examples],
        "not_applicable": [row.law.id for row in rows if row.skipped and not row.examples],
    }


def _found(violation: Violation) -> str:
    return f"law {violation.law.id}: {' '.join(violation.found.split())[:300]}; {violation.replay}"
