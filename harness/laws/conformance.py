"""Run the laws over a decoder, without any test framework.

Promise: the same cases for everybody, a function of their number and a seed, drawn and shrunk by Hypothesis.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from harness.adapters.probe import ABSENT, BROKEN, HELD, PartLaw
from harness.decoders.factory import Factory, load_factory, name_of, pickled
from harness.errors import InputError
from harness.judge.verdict import Verdict
from harness.laws.case import Case
from harness.laws.catalogue import LAWS
from harness.laws.law import Law, NotOffered, Subject, Violation
from harness.laws.listed import run_law
from harness.laws.results import LawResult, Report
from harness.laws.search import ROUNDS, SHRINK_S, Scope, search
from harness.pool.employ import Execution, employ
from harness.pool.workers import Died
from harness.speculative.parts import Parts

BUILT_NOTHING = ("implementation", "checkout", "option")


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
    crew = employ(Execution(how.get("workers", 1)), torch.device(scope.device), len(laws))
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


def lost(law: Law, died: Died, factory: str = "FACTORY", options: tuple[tuple[str, str], ...] = ()) -> LawResult:
    """Return what a law found whose workers all died: the decoder breaks it in its own way."""
    found = Violation(law, Case(), f"the process died: {died.why}", factory, options)
    return LawResult(law, 1, 1, violation=found, done=True)


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
    """Check one law in the cases of a scope; what broke it is shrunk.

    Where all of them were trivial as many more are drawn, and so on up to `ROUNDS` times.
    """
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
        for k in range(ROUNDS):
            search(holds, replace(scope, seed=scope.seed + k))
            if row.exercised or not row.examples:
                break
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


NAMES = tuple(field.name for field in fields(Parts))


def part_laws() -> list[Law]:
    """Return the laws that ask parts."""
    return [law for law in LAWS if set(law.watches) & set(NAMES) and "decode" not in law.watches]


def inspect_parts(
    subject: Subject, tried: Sequence[Case], progress: Callable[[], None] = lambda: None
) -> list[PartLaw]:
    """Ask every law of parts; return a row a part and law. `progress` is called after every law."""
    rows = []
    for law in part_laws():
        result = run_law(law, subject, tried)
        rows += [_row(part, result) for part in law.watches if part in NAMES]
        progress()
    return sorted(rows, key=lambda row: NAMES.index(row.part))


def _row(part: str, result: LawResult) -> PartLaw:
    verdict, found = HELD, ""
    if result.violation is not None:
        verdict, found = BROKEN, f"{result.violation.found}, at {result.violation.case!r}"
    elif result.verdict is not Verdict.IDENTICAL:
        verdict, found = ABSENT, result.skipped or f"never exercised ({result.refused} cases refused)"
    return PartLaw(part, result.law.id, result.law.statement, verdict, found)
