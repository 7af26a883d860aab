"""Put a decoder to the laws, without any test framework: all, one in one case, those of parts, or in few cases.

Promise: the same cases for everybody, a function of their number and a seed. A decoder that ends its process breaks the
law that was tried; so does one of which one call takes half of a law's time. A law that is late proves nothing.

A verification tries every law in a few cases, for what a trained pair on one pyramid never meets: a law that breaks in
one of them is a defect, and one that so few cases leave trivial is said, and no reason for anything. A decoder that
hangs, or ends its process, ends the laws, and so do `MOST_LATE` that took too long: others would end likewise.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from harness.decoders import Factory, Limits, load_factory
from harness.errors import InputError, StopSignal, one_line, shortened
from harness.judge import PartLaw, PartVerdict, Verdict
from harness.laws._apart import LawProcesses, LawWork, Options
from harness.laws._case import Case
from harness.laws._engine import CaseList, LawResult, Report, Scope, fixed_cases, isolated_parts, most_specific
from harness.laws._law import REGISTERED, Law, Subject, Violation
from harness.pool import Crew, Died, Parallelism, Pool, employ, one_thread
from harness.protocol.pyramid import PATCH_NUMS_256
from harness.runs import ADALN, BrokenLaw, LawsTried
from harness.speculative import Parts

WORDS = (
    "positions", "guidance", "masks", "state", "reuse", "randomness", "streams", "acceptance", "rules", "work", "batch",
    "sensitivity", "numbers",
)  # fmt: skip
FAMILIES = tuple(import_module(f"harness.laws._{word}") for word in WORDS)
LAWS = tuple(law for family in FAMILIES for law in REGISTERED if law.test.__module__ == family.__name__)

_BUILT_NOTHING = ("implementation", "checkout", "option")
_PARTS = tuple(field.name for field in fields(Parts))


def try_laws(work: LawWork, crew: Crew, laws: Sequence[Law]) -> Generator[LawResult]:
    """Try laws one by one, each as soon as somebody is free; what ends its process is broken.

    In this process, unless several are to do it, or the decoder is to have processes of its own (`LawWork.limits`).

    Raises `InputError` where the factory cannot be sent to another process.
    """
    is_here = not crew.is_elsewhere and work.limits is None
    pool: Pool | LawProcesses = crew.open(work) if is_here else LawProcesses(work, crew.devices)
    with closing(pool):
        for law, row in pool.map(laws):
            if isinstance(row, Died):
                violation = Violation(law, Case(), f"the process died: {row.why}", work.name, work.options)
                yield LawResult(law, 1, 1, violation=violation, done=True, killed=True)
            else:
                yield row


class How(TypedDict, total=False):
    """What else `run_conformance` takes by name."""

    checkout: str | Path  # folder of published code
    options: Mapping[str, str]  # name -> value, for the factory
    patch_nums: Sequence[int] | Sequence[Sequence[int]]  # one pyramid, or several; small ones otherwise
    dtype: str  # of all networks, rounding allowed for: float32 for code that computes in nothing else
    device: str  # of the networks
    shrink_s: float  # seconds that a failure may be simplified for
    family: str  # of the networks: var, infinity
    workers: int  # processes that share the laws; 1 = this process alone, 0 = one a GPU that the device stands for


def run_conformance(
    implementation: Factory | str,
    examples: int = 20,
    seed: int = 0,
    laws: Sequence[Law] = LAWS,
    progress: Callable[[LawResult], None] = lambda row: None,
    **how: Unpack[How],
) -> Report:
    """Check all laws against somebody's decoder, on `examples` cases each that Hypothesis draws, the same for all.

    `implementation` is ``factory(models, settings) -> decoder``, or its name ``package.module:factory``: no decoder,
    since laws need small networks and many settings. `progress` is called after every case with what its
    law has seen, and once more when the law is done; with several workers when a law is done.

    Returns the report, whose `verdict` is DEFECT if a law is broken. Raises `InputError` for no factory, or an argument
    outside its range.
    """
    factory = load_factory(implementation) if isinstance(implementation, str) else implementation
    if not callable(factory):
        rule, remedy = "must be a factory(models, settings)", "YourDecoder(models, settings.draft_len)"
        raise InputError("implementation", type(factory).__name__, rule, f"pass lambda models, settings: {remedy}")
    options: Options = tuple((name, str(value)) for name, value in how.get("options", {}).items())
    options = (("checkout", str(how["checkout"])), *options) if "checkout" in how else options
    sides: Sequence[Any] = how.get("patch_nums", ())
    pyramids = tuple(tuple(each) for each in ([sides] if sides and isinstance(sides[0], int) else sides))
    shrink_s, family = how.get("shrink_s", Scope.shrink_s), how.get("family", "var")
    scope = Scope(examples, seed, pyramids, how.get("dtype", ""), how.get("device", "cpu"), shrink_s, family)
    try:
        Subject(factory, options).decoder(scope.fitted(Case(scope.pyramids[0])))
    except InputError as error:
        if error.name in _BUILT_NOTHING:  # it built no decoder; other refusals are of this case
            raise
    crew = employ(Parallelism(how.get("workers", 1)), torch.device(scope.device), len(laws))
    rows: dict[str, LawResult] = {}
    with closing(try_laws(LawWork(factory, options, scope, progress=progress), crew, laws)) as results:
        for row in results:
            rows[row.law.id] = row
            if crew.is_elsewhere:
                progress(row)
    return Report([rows[law.id] for law in laws])


def check(law_id: str, implementation: Factory | str, case: Case, options: Options = ()) -> bool:
    """Replay one law in one case, as a violation says. Raises as `Law.check`, and `InputError` for an unknown id."""
    known = {law.id: law for law in LAWS}
    if law_id not in known:
        raise InputError("law", law_id, "is not a law", f"pass one of {', '.join(sorted(known))}")
    factory = load_factory(implementation) if isinstance(implementation, str) else implementation
    return known[law_id].check(Subject(factory, options), case)


def part_laws() -> list[Law]:
    return [law for law in LAWS if set(law.watches) & set(_PARTS) and "decode" not in law.watches]


def inspect_parts(work: LawWork, progress: Callable[[], None] = lambda: None) -> list[PartLaw]:
    """Ask every law of parts; return a row a part and law. Raises `InputError` where there is no such decoder."""
    results = []
    with closing(try_laws(work, Crew(("cpu",)), part_laws())) as tried:
        for result in tried:
            results.append(result)
            progress()
    rows = [_row(part, each) for each in results for part in _parts_of(each, results)]
    return sorted(rows, key=lambda row: _PARTS.index(row.part))


def _parts_of(result: LawResult, results: Sequence[LawResult]) -> list[str]:
    """Return the parts that a law has a row of: all that it watches, of a broken one those that it points to."""
    named = result.law.watches if result.violation is None else isolated_parts(result, results)
    known = [part for part in named if part in _PARTS]
    return known or [part for part in result.law.watches if part in _PARTS]


def _row(part: str, result: LawResult) -> PartLaw:
    verdict, finding = PartVerdict.HELD, ""
    if result.violation is not None:
        verdict, finding = PartVerdict.BROKEN, f"{result.violation.found}, at {result.violation.case!r}"
    elif result.verdict is not Verdict.IDENTICAL:
        verdict = PartVerdict.UNPROVEN if result.late else PartVerdict.ABSENT
        finding = result.late or result.skipped or f"never exercised ({result.refused} cases refused)"
    return PartLaw(part, result.law.id, result.law.statement, verdict, finding)


LAW_CASES = 2  # seconds for all laws
_SEED = 36  # of the cases: they leave no law trivial for the own decoder (tests/unit/laws/test_few_cases.py)
MOST_LATE = 3
_MOST_SAID = 300  # characters of what a decoder says

PUBLISHED_ALONE = "on the published pyramid alone, since it raises on small ones"


def _decode_plainly(subject: Subject, case: Case) -> bool:
    subject.decode(replace(case, labels=(0,), draft_len=1, bonus=False, policy="coupled", top_k=0, top_p=0.0))
    return True


_PLAIN = Law("few.plain", "A plain request is decoded.", ("decode",), _decode_plainly)
_REAL: dict[str, Any] = {"patch_nums": PATCH_NUMS_256, "D": 16, "depth": 1}


class LawsInterrupted(StopSignal):
    """A signal ended the laws; `tried` is what they said until then."""

    def __init__(self, tried: LawsTried, number: int) -> None:
        super().__init__(number)
        self.tried = tried


@dataclass(frozen=True)
class LawsPlace:
    device: str = "cpu"  # of the networks
    # of processes of the decoder's own, since nobody knows what it does; `timeout_s` is that of a law in all its
    # cases. None = this process does it all
    limits: Limits | None = None
    dtype: str = ""  # the one that the decoder takes, where it takes no other; rounding is then allowed for
    family: str = "var"  # of the networks


_HERE = LawsPlace()


def try_laws_quickly(
    implementation: Factory | str, count: int = LAW_CASES, options: Options = (), where: LawsPlace = _HERE,
    progress: Callable[[str], None] = lambda law: None,
) -> LawsTried:  # fmt: skip
    """Try every law in `count` cases, small networks in float64, where rounding decides nothing.

    A decoder that refuses them all is asked in float32, on pyramids of several scales, as published code has them; one
    that raises on those whatever it is asked, on the published pyramid alone (`LawsTried.pyramid` says so). A process
    that a law ends, or one that hangs, is that law's defect, and the last one. `progress` is called with the id of
    every law that is done.

    Raises `InputError` for a `count` below 1 or no such factory, and `LawsInterrupted`, which holds what they said
    until then, for SIGINT or SIGTERM.
    """
    if count < 1:
        raise InputError("laws", count, "must be 1 case or more", f"pass {LAW_CASES}, or no laws at all")
    crew = Crew((where.device,) * (1 if where.limits is None else 2))
    cases = [replace(case, device=where.device, family=where.family) for case in fixed_cases(count, _SEED)]
    taken = [replace(case, dtype=where.dtype or "float32", draft_dtype="", exact=False) for case in cases]
    tried = LawsTried(count, 0)

    def work_on(some: Sequence[Case]) -> LawWork:
        return LawWork(implementation, options, CaseList(tuple(some), every_policy=True), where.limits)

    plainly = () if where.limits is None or where.family != "var" else try_laws(work_on(taken), crew, (_PLAIN,))
    if any(row.violation for row in plainly):
        cases, taken = ([replace(case, **_REAL) for case in some] for some in (cases, taken))
    for some in (taken,) if where.dtype else (cases, taken):
        work = work_on(some)
        rows: list[LawResult] = []
        try:
            # small networks gain nothing from a second thread here; processes of their own share this one's
            one = one_thread() if where.limits is None else nullcontext()
            with one, closing(try_laws(work, crew, LAWS)) as results:
                for row in results:
                    rows.append(row)
                    progress(row.law.id)
                    if row.killed or sum(bool(each.late) for each in rows) == MOST_LATE:
                        break
        except StopSignal as stop:
            raise LawsInterrupted(_of(some, rows), stop.status - 128) from None
        tried = _of(some, rows)
        if len(tried.refused) < tried.asked:
            break
    return tried


def _of(cases: Sequence[Case], rows: Sequence[LawResult]) -> LawsTried:
    """Return what laws saw in some cases, and of which networks these are."""
    dtypes = {case.dtype for case in cases} | ({"float64"} if cases[0].exact else set())
    adaln = {ADALN} if any(case.shared_adaln for case in cases) else set[str]()
    alone = PUBLISHED_ALONE if all(case.patch_nums == PATCH_NUMS_256 for case in cases) else ""
    return replace(summed_up(rows, len(cases)), networks=tuple(sorted(dtypes | adaln)), pyramid=alone)


def summed_up(results: Iterable[LawResult], count: int) -> LawsTried:
    """Return what some laws saw in so many cases each, in the order of `LAWS`; broken ones the most specific first."""
    by_id = {row.law.id: row for row in results}
    rows = [by_id[law.id] for law in LAWS if law.id in by_id]
    refused = [row for row in rows if row.refused and not row.examples]
    return LawsTried(
        count,
        sum(row.violation is None and row.exercised > 0 for row in rows),
        tuple(_broken(row.violation, isolated_parts(row, rows)) for row in most_specific(rows) if row.violation),
        _ids(row for row in rows if row.violation is None and row.applies and row.examples and not row.exercised),
        _ids(refused),
        shortened(one_line(refused[0].why), _MOST_SAID) if refused else "",
        _ids(row for row in rows if row.violation is None and not row.applies and not row.refused),
        tuple(law.id for law in LAWS if law.id not in by_id),
        late=tuple(f"{row.law.id} {row.late}" for row in rows if row.late),
    )


def _ids(rows: Iterable[LawResult]) -> tuple[str, ...]:
    return tuple(row.law.id for row in rows)


def _broken(violation: Violation, parts: Sequence[str]) -> BrokenLaw:
    finding = " ".join(violation.found.split())[:_MOST_SAID]
    clause = f"law {violation.law.id}: {finding}; {violation.replay}"
    return BrokenLaw(", ".join(parts), clause, violation.case.seed)
