"""Every law in a few cases, for a verification: what a trained pair on one pyramid never meets.

Promise: the same cases for everybody; a law that breaks in one of them is a defect. A law that so few cases leave
trivial is said, and no reason for anything: laws are proved by `pytest tests/property` and `run_conformance`. A decoder
that hangs, or ends its process, ends the laws, and so do `MOST_LATE` that took too long: others would end likewise.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from harness.decoders import Factory, Limits
from harness.errors import InputError, StopSignal, one_line, shortened
from harness.laws._case import Case
from harness.laws._catalogue import LAWS
from harness.laws._conformance import LawWork, Options, try_laws
from harness.laws._engine import CaseList, LawResult, fixed_cases, isolated_parts, most_specific
from harness.laws._law import Law, Subject, Violation
from harness.pool import Crew
from harness.protocol.pyramid import PATCH_NUMS_256
from harness.runs import ADALN, BrokenLaw, LawsTried

LAW_CASES = 2  # seconds for all laws
_SEED = 2  # of the cases: they leave no law trivial for the own decoder (tests/unit/laws/test_few_cases.py)
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
    """Where laws are tried."""

    device: str = "cpu"  # of the networks
    # of processes of the decoder's own, since nobody knows what it does; `timeout_s` is that of a law in all its
    # cases. None = this process does it all
    limits: Limits | None = None
    dtype: str = ""  # the one that the decoder takes, where it takes no other; rounding is then allowed for
    family: str = "var"  # of the networks


_HERE = LawsPlace()


def try_laws_quickly(
    implementation: Factory | str,
    count: int = LAW_CASES,
    options: Options = (),
    where: LawsPlace = _HERE,
    progress: Callable[[str], None] = lambda law: None,
) -> LawsTried:
    """Try every law in `count` cases, small networks in float64, where rounding decides nothing.

    A decoder that refuses them all is asked in float32, on pyramids of several scales, as published code has them; one
    that raises on those whatever it is asked, on the published pyramid alone (`LawsTried.pyramid` says so). A process
    that a law ends, or one that hangs, is that law's defect, and the last one. `progress` is called with the id of
    every law that is done.

    Raises:
        InputError: `count` below 1; no such factory.
        LawsInterrupted: SIGINT or SIGTERM; holds what they said until then.
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
            with closing(try_laws(work, crew, LAWS)) as results:
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
        _ids(row for row in rows if row.violation is None and row.examples and not row.exercised),
        _ids(refused),
        shortened(one_line(refused[0].why), _MOST_SAID) if refused else "",
        _ids(row for row in rows if row.skipped and not row.examples and not row.refused),
        tuple(law.id for law in LAWS if law.id not in by_id),
        late=tuple(f"{row.law.id} {row.late}" for row in rows if row.late),
    )


def _ids(rows: Iterable[LawResult]) -> tuple[str, ...]:
    return tuple(row.law.id for row in rows)


def _broken(violation: Violation, parts: Sequence[str]) -> BrokenLaw:
    finding = " ".join(violation.found.split())[:_MOST_SAID]
    clause = f"law {violation.law.id}: {finding}; {violation.replay}"
    return BrokenLaw(", ".join(parts), clause, violation.case.seed)
