"""Run the laws over a decoder, without any test framework.

Promise: the same cases for everybody (a function of their number and a seed); nothing passes by not having been tried.
`run_conformance` draws and shrinks with Hypothesis; the hunt for planted bugs tries one list, smallest first.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

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
from harness.laws.search import SHRINK_S, Scope, search
from harness.runs.apart import pickled
from harness.runs.employ import employ
from harness.runs.factory import Factory, load_factory, name_of
from harness.runs.terms import Keeping
from harness.runs.workers import Died

BUILT_NOTHING = ("implementation", "checkout", "option")
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
        why: what the last refusal said.
        done: no more cases follow.
    """

    law: Law
    examples: int = 0
    exercised: int = 0
    refused: int = 0
    skipped: str = ""
    violation: Violation | None = None
    seconds: float = 0.0
    why: str = ""
    done: bool = False

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
        refused = f": {self.refused} cases refused, {self.why}" if self.refused else ""
        said = word.get(self.verdict, most + refused)
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


class How(TypedDict, total=False):
    """What else `run_conformance` takes by name.

    Args:
        checkout: folder of published code.
        options: (name, value) for the factory.
        patch_nums: one pyramid, or several; small ones otherwise.
        dtype: of all networks, rounding allowed for: float32 for code that computes in nothing else.
        device: of the networks.
        shrink_s: seconds that a failure may be shrunk for.
        workers: processes that share the laws; 1 = this process alone, 0 = one a GPU that the device stands for.
    """

    checkout: str | Path
    options: Mapping[str, str]
    patch_nums: Sequence[int] | Sequence[Sequence[int]]
    dtype: str
    device: str
    shrink_s: float
    workers: int


def run_conformance(
    implementation: Factory | str,
    examples: int = 20,
    seed: int = 0,
    laws: Sequence[Law] = LAWS,
    progress: Callable[[LawResult], None] = lambda row: None,
    **how: Unpack[How],
) -> Report:
    """Check all laws against somebody's decoder, on cases that Hypothesis draws and shrinks.

    Args:
        implementation: ``factory(models, settings) -> decoder``, or its name ``package.module:factory``. A factory,
            not a decoder, because the laws need small networks and many settings.
        examples: cases per law, >= 1; all laws meet the same ones.
        seed: of the cases.
        laws: which.
        progress: called after every case with what its law saw so far, and once more when the law is done; with several
            workers when a law is done.
        how: see `How`.

    Returns:
        The report; `report.verdict` is DEFECT if a law is broken.

    Raises:
        InputError: `implementation` is no factory, or an argument outside its range.
    """
    factory = load_factory(implementation) if isinstance(implementation, str) else implementation
    if not callable(factory):
        raise InputError(
            "implementation", type(factory).__name__, "must be a factory(models, settings)",
            "pass lambda models, settings: YourDecoder(models, settings.draft_len)",
        )  # fmt: skip
    scope, subject, report = scope_of(examples, seed, how), Subject(factory, options_of(how)), Report()
    try:
        subject.decoder(scope.fitted(Case(scope.pyramids[0])))
    except InputError as error:
        if error.name in BUILT_NOTHING:  # it built no decoder; other refusals are of this case
            raise
    crew = employ(Keeping(how.get("workers", 1)), torch.device(scope.device), len(laws))
    sent = pickled(factory, name_of(factory)) if crew.is_elsewhere else factory
    work = ConformanceWork(sent, subject.options, scope, _unseen if crew.is_elsewhere else progress)
    found: dict[str, LawResult] = {}
    with closing(crew.open(work)) as pool:
        for law, row in pool.map(laws):
            found[law.id] = lost(law, row) if isinstance(row, Died) else row
            if crew.is_elsewhere:
                progress(found[law.id])
    report.rows = [found[law.id] for law in laws]
    return report


def _unseen(row: LawResult) -> None:
    """Show nothing: a worker has nobody to show it to."""


@dataclass(frozen=True)
class ConformanceWork:
    """What a worker of a conformance run gets.

    Args:
        factory: the factory, or cloudpickle's bytes of it.
        options: of the factory.
        scope: of the cases.
        progress: as in `run_conformance`.
    """

    factory: Factory | bytes
    options: tuple[tuple[str, str], ...]
    scope: Scope
    progress: Callable[[LawResult], None] = _unseen

    def open(self) -> Checker:
        """Return what checks law after law."""
        return Checker(pickle.loads(self.factory) if isinstance(self.factory, bytes) else self.factory, self)


class Checker:
    """Checks laws over one decoder in the cases of one scope."""

    def __init__(self, factory: Factory, work: ConformanceWork) -> None:
        self.subject, self.scope, self.progress = Subject(factory, work.options), work.scope, work.progress
        self.about: dict[str, Any] = {"examples": work.scope.examples}

    def do(self, law: Law) -> LawResult:
        """Check one law."""
        return explore(law, self.subject, self.scope, self.progress)

    def close(self) -> None:
        """Nothing is left to end."""


def lost(law: Law, died: Died) -> LawResult:
    """Return what a law found whose workers all died: the decoder breaks it in its own way."""
    return LawResult(law, 1, 1, violation=Violation(law, Case(), f"the process died: {died.why}"), done=True)


def scope_of(examples: int, seed: int, how: How) -> Scope:
    """Return the scope that the arguments name. Raises `InputError`."""
    given: Sequence[Any] = how.get("patch_nums", ())
    sides = [given] if given and isinstance(given[0], int) else given
    pyramids = tuple(tuple(each) for each in sides)
    return Scope(
        examples, seed, pyramids, how.get("dtype", ""), how.get("device", "cpu"), how.get("shrink_s", SHRINK_S)
    )


def options_of(how: How) -> tuple[tuple[str, str], ...]:
    """Return the options of the factory, the checkout among them."""
    options = tuple((name, str(value)) for name, value in how.get("options", {}).items())
    return (("checkout", str(how["checkout"])), *options) if "checkout" in how else options


def explore(law: Law, subject: Subject, scope: Scope, progress: Callable[[LawResult], None]) -> LawResult:
    """Check one law in the cases of a scope; what broke it is shrunk."""
    row, start = LawResult(law), time.perf_counter()

    def holds(case: Case) -> None:
        try:
            exercised = law.check(subject, case)
        except NotOffered as why:
            row.skipped = str(why)
            return
        except InputError as error:
            row.refused += row.violation is None
            row.why = str(error)
            return
        except Violation as violation:
            row.examples += row.violation is None
            row.violation = violation
            raise
        finally:
            progress(row)
        if row.violation is None:  # what follows a violation is shrinking
            row.exercised += exercised
            row.examples += 1

    try:
        search(holds, scope)
    except Violation as violation:
        row.violation = violation
    row.seconds = time.perf_counter() - start
    row.done = True
    progress(row)
    return row


def check(law_id: str, implementation: Factory | str, case: Case, options: tuple[tuple[str, str], ...] = ()) -> bool:
    """Replay one law in one case, as a violation says. Raises as `Law.check`, and `InputError` for an unknown id."""
    known = {law.id: law for law in LAWS}
    if law_id not in known:
        raise InputError("law", law_id, "is not a law", f"pass one of {', '.join(sorted(known))}")
    factory = load_factory(implementation) if isinstance(implementation, str) else implementation
    return known[law_id].check(Subject(factory, options), case)
