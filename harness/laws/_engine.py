"""What tries a law: cases from a source, what the law saw in them, and the simplest case that breaks it.

Promise: the same cases for everybody, a function of the source: Hypothesis draws a `Scope`, a `CaseList` has them.
Nothing passes by not having been tried: a law that was never exercised, or mostly refused, is INCONCLUSIVE. Hypothesis
is imported when cases are drawn: no other command waits for it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from harness.errors import InputError
from harness.judge import Verdict, worst_verdict
from harness.laws._case import CHOICES, FAMILIES, Case
from harness.laws._law import Law, NotDone, NotOffered, Subject, Violation
from harness.models import parse_mode
from harness.protocol.pyramid import ScalePyramid

_ROUNDS = 4  # of as many cases each: a law whose few cases all happen to be trivial draws more before it is unproven


@dataclass
class LawResult:
    law: Law  # which
    examples: int = 0  # cases in which it was checked
    exercised: int = 0  # those that were not trivial for it
    refused: int = 0  # cases that the decoder refused with an `InputError`
    skipped: str = ""  # why it does not apply to the decoder, or to some case; empty when it always does
    violation: Violation | None = None  # in the simplest case that was found
    seconds: float = 0.0  # of all its checks
    why: str = ""  # what the last refusal said
    done: bool = False  # no more cases follow
    killed: bool = False  # the process that tried it ended, or one call of the decoder took too long
    late: str = ""  # that all its cases took too long, and the remedy: nothing is known of it
    not_done: bool = False  # whether some case showed that the decoder never does what it looks at

    @property
    def applies(self) -> bool:
        """Whether the law applies: trivial cases say nothing of a decoder that never does what it looks at."""
        return not self.skipped or self.exercised > 0 or (self.examples > 0 and not self.not_done)

    @property
    def verdict(self) -> Verdict | None:
        """DEFECT, IDENTICAL (it held), INCONCLUSIVE (late, never exercised, mostly refused), None: not applicable."""
        if self.violation is not None:
            return Verdict.DEFECT
        if not self.applies:
            return None
        return Verdict.IDENTICAL if self.exercised and self.refused <= self.examples else Verdict.INCONCLUSIVE

    def __str__(self) -> str:
        most = "mostly refused" if self.exercised else "never exercised"
        word = {None: f"not applicable: {self.skipped}", Verdict.DEFECT: "BROKEN", Verdict.IDENTICAL: "held"}
        refused = f": {self.refused} cases refused, {self.why}" if self.refused else ""
        outcome = self.late or word.get(self.verdict, most + refused)
        counts = f"{self.examples:5d} examples {self.exercised:5d} exercised {self.refused:4d} refused"
        return f"{self.law.id:28s} {counts} {self.seconds:7.2f} s  {outcome}"


# Parts that other parts build on come before these: where several laws isolate one, the first is nearest the cause.
_CAUSES = (
    "crash", "network", "quantizer", "autoencoder", "noise", "condition", "build_combined_query", "positions",
    "attention_mask", "split_logits_by_scale", "new_cache", "cache", "guide", "filter_logits", "draw", "accumulate",
    "next_input", "keep_drafted", "residual", "accept", "bonus", "draft_len", "counts",
)  # fmt: skip
NO_PART = {"decode", "unknown"}  # the decode as a whole, and what nobody can name


def most_specific(rows: Iterable[LawResult]) -> list[LawResult]:
    """Return the broken laws: first those that point to one part, causes before consequences; then first those with a
    part that many broken laws watch, and few that hold; last those that point to none.
    """
    rows, broken, held = list(rows), Counter[str](), Counter[str]()
    for row in rows:
        (broken if row.violation else held).update(row.law.watches if row.violation or row.exercised else ())

    def place(row: LawResult) -> tuple[float, ...]:
        parts = (row.violation.part,) if row.violation and row.violation.part else row.law.watches
        if set(parts) <= NO_PART:
            return (2,)
        if len(parts) == 1:
            return 0, _CAUSES.index(parts[0]) if parts[0] in _CAUSES else len(_CAUSES)
        # as programs are searched for faulty lines (Ochiai)
        most = max(broken[part] / math.sqrt(broken[part] + held[part]) for part in parts if part not in NO_PART)
        return 1, -most, len(parts)

    return sorted((row for row in rows if row.violation is not None), key=place)


def isolated_parts(row: LawResult, rows: Sequence[LawResult]) -> tuple[str, ...]:
    """Return what a broken law points to, of all laws that were tried: the part that is named in what it found, or what
    it watches and more specific broken laws watch, too, without parts that a law of their own found to be right; and
    never the decode as a whole where it points to a part of it.
    """
    assert row.violation is not None
    if row.violation.part:
        return (row.violation.part,)
    parts = row.law.watches
    for other in most_specific(rows):
        common = tuple(part for part in parts if part in other.law.watches and part != "decode")
        if len(other.law.watches) < len(row.law.watches) and common:
            parts = common
    alone = {each.law.watches for each in rows if each.violation is None and each.exercised}
    suspects = tuple(part for part in parts if (part,) not in alone and part != "decode")
    return suspects or parts


@dataclass
class Report:
    """What all laws saw; its `str` is a table and the first violation."""

    rows: list[LawResult] = field(default_factory=list)

    @property
    def violations(self) -> list[Violation]:
        """The violation of every broken law, the most specific first."""
        return [row.violation for row in most_specific(self.rows) if row.violation is not None]

    @property
    def verdict(self) -> Verdict:
        """DEFECT if a law is broken, INCONCLUSIVE if one was never exercised or none applied, else IDENTICAL."""
        return worst_verdict([row.verdict for row in self.rows if row.verdict is not None])

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


@dataclass(frozen=True)
class CaseList:
    """One list of cases for all laws: for hunts, and for the laws of a verification."""

    cases: Sequence[Case]  # smallest first
    every_policy: bool = False  # the law of the policies meets every policy, in one case after the other
    passes: int = 1  # as in `Scope`; 0 leaves a failure as it was met, where its case is nobody's to read
    values, shrink_s = 4, float("inf")  # as in `Scope`

    def batches(self, law: Law) -> Iterator[Sequence[Case]]:
        if self.every_policy and law.id == "rules.oracle":
            policies = CHOICES["policy"]
            yield [replace(self.cases[k % len(self.cases)], policy=name) for k, name in enumerate(policies)]
        else:
            yield self.cases

    def fitted(self, case: Case) -> Case:
        return case

    def choices(self, name: str) -> Sequence[Any]:
        return CHOICES[name]


def fixed_cases(count: int, seed: int = 0) -> list[Case]:
    """Return cases that differ in everything, smallest pyramid first: a function of the arguments."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options: Sequence[object]) -> object:
        return options[int(torch.randint(len(options), (), generator=generator))]

    cases = [Case(**{name: pick(options) for name, options in CHOICES.items()}) for _ in range(count)]  # type: ignore[arg-type]
    return sorted(cases, key=lambda case: (case.pyramid.L, case.B, case.depth, case.V))


@dataclass(frozen=True)
class Scope:
    """Cases that Hypothesis draws. Raises `InputError` for a value outside its range."""

    examples: int = 20  # cases a law, >= 1
    seed: int = 0  # of the cases
    patch_nums: tuple[tuple[int, ...], ...] = ()  # pyramids; empty = the small ones of `CHOICES`
    # "" = the laws' own choice, float64 wherever rounding could decide; otherwise every law takes networks of this
    # dtype, and rounding is allowed for
    dtype: str = ""
    device: str = "cpu"  # of the networks
    shrink_s: float = 60.0  # seconds that a failure may be simplified for
    family: str = "var"  # of the networks, one of `FAMILIES`
    # values of a field that are tried then (of 1,000 seeds the first ones), and passes over all fields, if one helps
    values, passes = 32, 8

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise InputError("examples", self.examples, "must be 1 or more", "pass examples=20")
        if self.dtype:
            parse_mode("dtype", self.dtype)
        if not 0 <= self.shrink_s < float("inf"):
            raise InputError("shrink_s", self.shrink_s, "must be a number of seconds", "pass shrink_s=60")
        if self.family not in FAMILIES:
            raise InputError("family", self.family, f"must be one of {', '.join(FAMILIES)}", "pass family=infinity")
        for sides in self.patch_nums:
            ScalePyramid(sides)

    @property
    def pyramids(self) -> tuple[tuple[int, ...], ...]:
        """The pyramids that are tried, simplest first."""
        if self.patch_nums:
            return tuple(sorted(self.patch_nums, key=lambda sides: ScalePyramid(sides).L))
        return tuple(CHOICES["patch_nums"])

    def batches(self, law: Law) -> Iterator[Sequence[Case]]:
        """Draw up to `_ROUNDS` times; every law meets the same cases."""
        from harness.laws._strategies import drawn  # noqa: PLC0415  # Hypothesis: a third of a second

        for k in range(_ROUNDS):
            yield [self.fitted(case) for case in drawn(self.pyramids, self.examples, self.seed + k)]

    def fitted(self, case: Case) -> Case:
        """Return a case on the scope's device, all networks in its dtype."""
        case = replace(case, device=self.device, family=self.family)
        return replace(case, dtype=self.dtype, draft_dtype="", exact=False) if self.dtype else case

    def choices(self, name: str) -> Sequence[Any]:
        """Return those of all cases, of pyramids the scope's own."""
        return self.pyramids if name == "patch_nums" else CHOICES[name]


CaseSource = Scope | CaseList


def unheard(row: LawResult) -> None:
    """Tell nobody."""


def try_law(
    law: Law, subject: Subject, source: CaseSource, progress: Callable[[LawResult], None] = unheard
) -> LawResult:
    """Check one law until a case breaks it, and simplify that case; `progress` is called after each, and at the end."""
    row, start = LawResult(law), time.perf_counter()
    for cases in source.batches(law):
        for case in cases:
            _check(row, subject, case)
            progress(row)
            if row.violation is not None:
                break
        if row.violation is not None or row.exercised or row.not_done or not row.examples:
            break
    if row.violation is not None:
        row.violation = _simplest(row.violation, subject, source)
    row.seconds = time.perf_counter() - start
    row.done = True
    progress(row)
    return row


def _check(row: LawResult, subject: Subject, case: Case) -> None:
    """Check the law of a row in one case, and count what came of it."""
    try:
        row.exercised += row.law.check(subject, case)
        row.examples += 1
    except NotOffered as why:
        row.skipped, row.not_done = str(why), row.not_done or isinstance(why, NotDone)
    except InputError as error:
        row.refused += 1
        row.why = str(error)
    except Violation as violation:
        row.examples += 1
        row.violation = violation


def _simplest(violation: Violation, subject: Subject, source: CaseSource) -> Violation:
    """Return the violation with every field of its case, in turn, at the simplest value that keeps it."""
    until = time.monotonic() + source.shrink_s
    for _ in range(source.passes):
        before = violation.case
        for name in CHOICES:
            now, known = getattr(violation.case, name), list(source.choices(name))
            # the options before it, or the first one where it is none of them
            for value in known[: min(source.values, known.index(now))] if now in known else known[:1]:
                if time.monotonic() >= until:
                    return violation
                row = LawResult(violation.law)
                _check(row, subject, source.fitted(replace(violation.case, **{name: value})))
                if row.violation is not None:
                    violation = row.violation
                    break
        if violation.case == before:
            break
    return violation
