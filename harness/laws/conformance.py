"""Run the laws over a decoder, without any test framework.

Promise: the same cases for everybody (a function of their number and a seed), smallest first, so that the first case
that breaks a law is close to the smallest one; nothing passes by not having been tried.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.errors import InputError
from harness.implementations import Factory, load_factory
from harness.laws import acceptance, batch, guidance, masks, positions, randomness, sensitivity, state
from harness.laws.case import QUALITIES, Case
from harness.laws.law import Law, NotOffered, Subject, Violation
from harness.verdict import Verdict

FAMILIES = (positions, guidance, masks, state, randomness, acceptance, batch, sensitivity)
LAWS: tuple[Law, ...] = tuple(law for family in FAMILIES for law in family.LAWS)
PYRAMIDS = ((1,), (1, 2), (1, 3), (1, 2, 3), (1, 2, 4), (1, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 2, 4, 5, 6))


@dataclass
class Row:
    """What one law saw.

    Args:
        law: which.
        examples: cases in which it was checked.
        exercised: those that were not trivial for it.
        refused: cases that the decoder refused with an `InputError`.
        skipped: why it does not apply to the decoder; empty when it does.
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
        """DEFECT, IDENTICAL (it held), INCONCLUSIVE (never exercised), or None where it does not apply."""
        if self.violation is not None:
            return Verdict.DEFECT
        if self.skipped:
            return None
        return Verdict.IDENTICAL if self.exercised else Verdict.INCONCLUSIVE

    def __str__(self) -> str:
        word = {None: f"not applicable: {self.skipped}", Verdict.DEFECT: "BROKEN", Verdict.IDENTICAL: "held"}
        said = word.get(self.verdict, "never exercised")
        counts = f"{self.examples:5d} examples {self.exercised:5d} exercised"
        return f"{self.law.id:28s} {counts} {self.seconds:7.2f} s  {said}"


@dataclass
class Report:
    """What all laws saw; its `str` is a table and the first violation."""

    rows: list[Row] = field(default_factory=list)

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
            f"{self.verdict.value} {held} of {len(applied)} laws held, {len(self.rows) - len(applied)} not applicable"
        ]
        return "\n".join(lines)


def cases(count: int, seed: int = 0) -> list[Case]:
    """Return cases that differ in everything, smallest pyramid first: a function of the arguments."""
    rng = random.Random(f"cases/{seed}")
    made = [_case(rng, k) for k in range(count)]
    return sorted(made, key=lambda case: (case.pyramid.L, case.B, case.depth, case.V))


def _case(rng: random.Random, k: int) -> Case:
    patch_nums = PYRAMIDS[k % len(PYRAMIDS)]
    S, V = len(patch_nums), rng.choice((3, 5, 8, 13))
    return Case(
        patch_nums=patch_nums,
        V=V,
        depth=rng.choice((1, 2)),
        shared_adaln=rng.random() < 0.25,
        l2_norm=rng.random() < 0.75,
        weights=rng.randrange(6),
        draft=QUALITIES[rng.randrange(len(QUALITIES))],
        labels=tuple(rng.randrange(4) for _ in range(rng.choice((1, 2, 3)))),
        seed=rng.randrange(1000),
        cfg=rng.choice((0.0, 0.5, 1.5, 4.0)),
        top_k=rng.choice((0, 0, 1, V // 2 + 1)),
        top_p=rng.choice((0.0, 0.0, 0.5, 0.9)),
        order=rng.choice(("image", "batch")),
        draft_len=rng.randint(1, S),
        bonus=rng.random() < 0.5,
        dtype=rng.choice(("float32", "float64")),
    )


def run_law(law: Law, subject: Subject, tried: Sequence[Case]) -> Row:
    """Check one law in cases until one breaks it."""
    row, start = Row(law), time.perf_counter()
    for case in tried:
        try:
            row.exercised += law.check(subject, case)
            row.examples += 1
        except NotOffered as why:
            row.skipped = str(why)
            break
        except InputError:
            row.refused += 1
        except Violation as violation:
            row.examples += 1
            row.violation = violation
            break
    row.seconds = time.perf_counter() - start
    return row


def run_conformance(
    implementation: Factory | str,
    examples: int = 18,
    seed: int = 0,
    laws: Sequence[Law] = LAWS,
    progress: Callable[[Row], None] = lambda row: None,
) -> Report:
    """Check all laws against somebody's decoder.

    Args:
        implementation: ``factory(models, settings) -> decoder``, or its name ``package.module:factory``. A factory,
            not a decoder, because the laws need small networks and many settings.
        examples: cases per law, >= 1.
        seed: of the cases.
        laws: which.
        progress: called after every law.

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
        raise InputError("examples", examples, "must be 1 or more", "pass examples=18")
    tried, subject, report = cases(examples, seed), Subject(factory), Report()
    for law in laws:
        report.rows.append(run_law(law, subject, tried))
        progress(report.rows[-1])
    return report


def check(law_id: str, implementation: Factory | str, case: Case) -> bool:
    """Replay one law in one case, as a violation says. Raises as `Law.check`, and `InputError` for an unknown id."""
    known = {law.id: law for law in LAWS}
    if law_id not in known:
        raise InputError("law", law_id, "is not a law", f"pass one of {', '.join(sorted(known))}")
    factory = load_factory(implementation) if isinstance(implementation, str) else implementation
    return known[law_id].check(Subject(factory), case)
