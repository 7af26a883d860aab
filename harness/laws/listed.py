"""One list of cases for all laws, smallest first, and the smallest of them that still breaks a law: for hunts.

Promise: the same cases for everybody, a function of their number and a seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from harness.errors import InputError
from harness.laws.case import CHOICES, Case
from harness.laws.law import Law, NotOffered, Subject, Violation
from harness.laws.results import LawResult


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
        except InputError as error:
            row.refused += 1
            row.why = str(error)
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
