"""Run the laws over a decoder, without any test framework.

Promise: the same cases for everybody (a function of their number and a seed), smallest first, so that the first case
that breaks a law is close to the smallest one; nothing passes by not having been tried.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from harness.errors import InputError
from harness.judge.verdict import Verdict
from harness.laws import (
    acceptance,
    batch,
    guidance,
    masks,
    numbers,
    positions,
    randomness,
    reuse,
    rules,
    sensitivity,
    state,
    streams,
)
from harness.laws.case import CHOICES, Case
from harness.laws.law import Law, NotOffered, Subject, Violation
from harness.runs.apart import pickled
from harness.runs.employ import employ
from harness.runs.factory import Factory, load_factory, name_of
from harness.runs.terms import Keeping
from harness.runs.workers import Died

FAMILIES = (
    positions, guidance, masks, state, reuse, randomness, streams, acceptance, rules, batch, sensitivity, numbers
)  # fmt: skip
LAWS: tuple[Law, ...] = tuple(law for family in FAMILIES for law in family.LAWS)


@dataclass
class LawResult:
    """What one law saw.

    Args:
        law: which.
        examples: cases in which it was checked.
        exercised: those that were not trivial for it.
        refused: cases that the decoder refused with an `InputError`.
        skipped: why it does not apply to the decoder, or to some case; empty when it always does.
        violation: the first one.
        seconds: of all its checks.
    """

    law: Law
    examples: int = 0
    exercised: int = 0
    refused: int = 0
    skipped: str = ""
    violation: Violation | None = None
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict | None:
        """DEFECT, IDENTICAL (it held), INCONCLUSIVE (never exercised, or mostly refused), None: not applicable."""
        if self.violation is not None:
            return Verdict.DEFECT
        if self.skipped and not self.examples:
            return None
        return Verdict.IDENTICAL if self.exercised and self.refused <= self.examples else Verdict.INCONCLUSIVE

    def __str__(self) -> str:
        most = "mostly refused" if self.exercised else "never exercised"
        word = {None: f"not applicable: {self.skipped}", Verdict.DEFECT: "BROKEN", Verdict.IDENTICAL: "held"}
        said = word.get(self.verdict, most)
        counts = f"{self.examples:5d} examples {self.exercised:5d} exercised {self.refused:4d} refused"
        return f"{self.law.id:28s} {counts} {self.seconds:7.2f} s  {said}"


@dataclass
class Report:
    """What all laws saw; its `str` is a table and the first violation."""

    rows: list[LawResult] = field(default_factory=list)

    @property
    def violations(self) -> list[Violation]:
        """The first violation of every broken law."""
        return [row.violation for row in self.rows if row.violation is not None]

    @property
    def verdict(self) -> Verdict:
        """DEFECT if a law is broken, INCONCLUSIVE if one was never exercised or none applied, else IDENTICAL."""
        verdicts = [row.verdict for row in self.rows if row.verdict is not None]
        if Verdict.DEFECT in verdicts:
            return Verdict.DEFECT
        return Verdict.IDENTICAL if verdicts and Verdict.INCONCLUSIVE not in verdicts else Verdict.INCONCLUSIVE

    def __str__(self) -> str:
        applied = [row for row in self.rows if row.verdict is not None]
        held = sum(row.verdict is Verdict.IDENTICAL for row in applied)
        lines = [str(row) for row in self.rows]
        lines += [f"\n{violation}" for violation in self.violations[:1]]
        lines += [
            f"{self.verdict.value} {held} of {len(applied)} laws held, {len(self.rows) - len(applied)} not applicable, "
            f"{sum(row.refused for row in self.rows)} cases refused"
        ]
        return "\n".join(lines)


def cases(count: int, seed: int = 0) -> list[Case]:
    """Return cases that differ in everything, smallest pyramid first: a function of the arguments."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options: Sequence[object]) -> object:
        return options[int(torch.randint(len(options), (), generator=generator))]

    made = [Case(**{name: pick(options) for name, options in CHOICES.items()}) for _ in range(count)]  # type: ignore[arg-type]
    return sorted(made, key=lambda case: (case.pyramid.L, case.B, case.depth, case.V))


def run_law(law: Law, subject: Subject, tried: Sequence[Case]) -> LawResult:
    """Check one law in cases until one breaks it."""
    row, start = LawResult(law), time.perf_counter()
    for case in tried:
        try:
            row.exercised += law.check(subject, case)
            row.examples += 1
        except NotOffered as why:
            row.skipped = str(why)
        except InputError:
            row.refused += 1
        except Violation as violation:
            row.examples += 1
            row.violation = smallest(law, subject, violation)
            break
    row.seconds = time.perf_counter() - start
    return row


def smallest(law: Law, subject: Subject, violation: Violation) -> Violation:
    """Return the violation with every field of its case, in turn, at the simplest value that keeps it.

    Simpler as in `CHOICES`; at most four values a field are tried.
    """
    for name, options in CHOICES.items():
        now, known = getattr(violation.case, name), list(options)
        simpler = known[: min(4, known.index(now))] if now in known else known[:1]
        for value in simpler:
            try:
                law.check(subject, replace(violation.case, **{name: value}))
            except Violation as found:
                violation = found
                break
            except (NotOffered, InputError):
                continue
    return violation


def run_conformance(
    implementation: Factory | str,
    examples: int = 20,
    seed: int = 0,
    laws: Sequence[Law] = LAWS,
    progress: Callable[[LawResult], None] = lambda row: None,
    workers: int = 1,
) -> Report:
    """Check all laws against somebody's decoder.

    Args:
        implementation: ``factory(models, settings) -> decoder``, or its name ``package.module:factory``. A factory,
            not a decoder, because the laws need small networks and many settings.
        examples: cases per law, >= 1; all laws meet the same ones.
        seed: of the cases.
        laws: which.
        progress: called after every law.
        workers: processes that share the laws; 1 = this process alone.

    Returns:
        The report; `report.verdict` is DEFECT if a law is broken.

    Raises:
        InputError: `implementation` is no factory, or examples < 1.
    """
    factory = load_factory(implementation) if isinstance(implementation, str) else implementation
    if not callable(factory):
        raise InputError(
            "implementation", type(factory).__name__, "must be a factory(models, settings)",
            "pass lambda models, settings: YourDecoder(models, settings.draft_len)",
        )  # fmt: skip
    if examples < 1:
        raise InputError("examples", examples, "must be 1 or more", "pass examples=20")
    tried, subject, report = cases(examples, seed), Subject(factory), Report()
    try:
        subject.decoder(tried[0])
    except InputError as error:
        if error.name == "implementation":  # it built no decoder; other refusals are of this case
            raise
    crew = employ(Keeping(workers), torch.device("cpu"), len(laws))
    sent = pickled(factory, name_of(factory)) if crew.is_elsewhere else factory
    found: dict[str, LawResult] = {}
    with closing(crew.open(ConformanceWork(sent, tuple(tried)))) as pool:
        for law, row in pool.map(laws):
            found[law.id] = lost(law, row) if isinstance(row, Died) else row
            progress(found[law.id])
    report.rows = [found[law.id] for law in laws]
    return report


@dataclass(frozen=True)
class ConformanceWork:
    """What a worker of a conformance run gets: the factory, or cloudpickle's bytes of it, and the cases."""

    factory: Factory | bytes
    tried: tuple[Case, ...]

    def open(self) -> Checker:
        """Return what checks law after law."""
        return Checker(pickle.loads(self.factory) if isinstance(self.factory, bytes) else self.factory, self.tried)


class Checker:
    """Checks laws over one decoder in the same cases."""

    def __init__(self, factory: Factory, tried: Sequence[Case]) -> None:
        self.subject, self.tried = Subject(factory), tried
        self.about: dict[str, Any] = {"cases": len(tried)}

    def do(self, law: Law) -> LawResult:
        """Check one law."""
        return run_law(law, self.subject, self.tried)

    def close(self) -> None:
        """Nothing is left to end."""


def lost(law: Law, died: Died) -> LawResult:
    """Return what a law found whose workers all died: the decoder breaks it in its own way."""
    return LawResult(law, 1, 1, violation=Violation(law, Case(), f"the process died: {died.why}"))


def check(law_id: str, implementation: Factory | str, case: Case) -> bool:
    """Replay one law in one case, as a violation says. Raises as `Law.check`, and `InputError` for an unknown id."""
    known = {law.id: law for law in LAWS}
    if law_id not in known:
        raise InputError("law", law_id, "is not a law", f"pass one of {', '.join(sorted(known))}")
    factory = load_factory(implementation) if isinstance(implementation, str) else implementation
    return known[law_id].check(Subject(factory), case)
