"""Every law in a few cases, beside a verification: what a trained pair on one pyramid never meets.

Promise: the same cases for everybody; a law that breaks in one of them is a defect. A law that so few cases leave
trivial is told, and no reason for anything: laws are proved by `pytest tests/property` and `run_conformance`. A decoder
that hangs, or ends its process, ends the laws: what is left would end as that one did.
"""

from __future__ import annotations

import faulthandler
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from harness.decoders.factory import Factory, load_factory, name_of, pickled
from harness.decoders.in_process import OutOfTimeError
from harness.decoders.process import Limits
from harness.errors import InputError, StopSignal, one_line, shortened
from harness.laws.case import CHOICES, Case
from harness.laws.catalogue import LAWS
from harness.laws.conformance import lost
from harness.laws.law import Law, Subject, Violation
from harness.laws.listed import cases, run_law
from harness.laws.results import LawResult
from harness.pool.employ import Crew
from harness.pool.workers import Died
from harness.runs.result import BrokenLaw, LawsTried

CASES = 2  # seconds for all laws
SEED = 2  # of the cases: they leave no law trivial for the own decoder (tests/unit/laws/test_beside.py)
MOST_SAID = 300  # characters of what a decoder says
DEAF_S = 10.0  # for code to hear that its time is over


class LawsInterrupted(StopSignal):
    """A signal ended the laws; `tried` is what they said until then."""

    def __init__(self, tried: LawsTried, number: int) -> None:
        super().__init__(number)
        self.tried = tried


@dataclass(frozen=True)
class Where:
    """Where laws are tried.

    Args:
        device: of the networks.
        limits: of processes of the decoder's own, since nobody knows what it does; `timeout_s` is that of a law in all
            its cases. None = this process does it all.
    """

    device: str = "cpu"
    limits: Limits | None = None


HERE = Where()


@dataclass(frozen=True)
class BesideWork:
    """What a worker gets: a decoder and the cases.

    Args:
        factory: its name, cloudpickle's bytes of it, or the factory itself where it stays in this process.
        options: of the factory.
        tried: cases, smallest first.
        limits: of the process that does the work; None = it is the caller's, and has none.
    """

    factory: Factory | str | bytes
    options: tuple[tuple[str, str], ...]
    tried: tuple[Case, ...]
    limits: Limits | None = None

    def open(self) -> _Tried:
        """Return what tries law after law. Effects: the limit of memory of this process."""
        if self.limits is not None:
            self.limits.bound_memory()
        factory = pickle.loads(self.factory) if isinstance(self.factory, bytes) else self.factory
        factory = load_factory(factory) if isinstance(factory, str) else factory
        return _Tried(Subject(factory, self.options), self)


class _Tried:
    """Tries laws over one decoder."""

    def __init__(self, subject: Subject, work: BesideWork) -> None:
        self.subject, self.tried = subject, work.tried
        self.seconds = work.limits.timeout_s if work.limits is not None else 0.0
        self.about: dict[str, Any] = {"cases": len(work.tried)}

    def do(self, law: Law) -> LawResult | Died:
        """Try one law in every case, until one breaks it; `Died` where its time is over."""
        try:
            with in_time(self.seconds):
                return run_law(law, self.subject, cases_for(law, self.tried))
        except OutOfTimeError as error:
            return Died(str(error))

    def close(self) -> None:
        """Nothing is left to end."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in what takes longer; code that hears no signal ends its process. 0 = no limit.

    Effects: the alarm of this process, which must be one of its own.
    """
    if not seconds:
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise OutOfTimeError(f"no answer within {seconds:g} s (timeout)")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + DEAF_S, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        faulthandler.cancel_dump_traceback_later()


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
    where: Where = HERE,
    progress: Callable[[str], None] = lambda law: None,
) -> LawsTried:
    """Try every law in a few cases.

    Args:
        implementation: factory of the decoder, or its name.
        count: cases, >= 1: small networks in float64, where rounding decides nothing.
        options: (name, value) for the factory.
        where: device and processes.
        progress: called with the id of every law that is done.

    Returns:
        What they said. A process that a law ends, or one that hangs, is that law's defect, and the last one.

    Raises:
        InputError: `count` below 1; no such factory.
        LawsInterrupted: SIGINT or SIGTERM; holds what they said until then.
    """
    if count < 1:
        raise InputError("laws", count, "must be 1 case or more", f"pass {CASES}, or no laws at all")
    crew = Crew((where.device,) * (1 if where.limits is None else 2))
    sent: Factory | str | bytes = implementation
    if crew.is_elsewhere and not isinstance(implementation, str):
        sent = pickled(implementation, name_of(implementation))
    tried = tuple(replace(case, device=where.device) for case in cases(count, SEED))
    named = repr(implementation) if isinstance(implementation, str) else Subject(implementation).name
    rows: dict[str, LawResult] = {}
    try:
        with closing(crew.open(BesideWork(sent, options, tried, where.limits))) as pool:
            for law, row in pool.map(LAWS):
                rows[law.id] = lost(law, row, named, options) if isinstance(row, Died) else row
                progress(law.id)
                if isinstance(row, Died):
                    break
    except StopSignal as stop:
        raise LawsInterrupted(said(rows, count), stop.status - 128) from None
    return said(rows, count)


def said(found: Mapping[str, LawResult], count: int) -> LawsTried:
    """Return what the rows of some laws, by id, say."""
    rows = [found[law.id] for law in LAWS if law.id in found]
    broken = [
        BrokenLaw(", ".join(v.law.watches), _found(v), v.case.seed) for row in rows if (v := row.violation) is not None
    ]
    refused = [row for row in rows if row.refused and not row.examples]
    return LawsTried(
        count,
        sum(row.violation is None and row.exercised > 0 for row in rows),
        tuple(broken),
        trivial=_ids(rows, lambda row: row.violation is None and row.examples > 0 and not row.exercised),
        refused=tuple(row.law.id for row in refused),
        why=shortened(one_line(refused[0].why), MOST_SAID) if refused else "",
        not_applicable=_ids(rows, lambda row: bool(row.skipped) and not row.examples and not row.refused),
        left=tuple(law.id for law in LAWS if law.id not in found),
    )


def _ids(rows: Sequence[LawResult], is_one: Callable[[LawResult], bool]) -> tuple[str, ...]:
    return tuple(row.law.id for row in rows if is_one(row))


def _found(violation: Violation) -> str:
    return f"law {violation.law.id}: {' '.join(violation.found.split())[:MOST_SAID]}; {violation.replay}"
