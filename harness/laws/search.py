"""Cases for laws, drawn and shrunk by Hypothesis.

Promise: a function of the scope; the case that a failure ends with is the simplest that was found within the time for
shrinking, and it does fail. Hypothesis is imported when a search begins: no other command waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.errors import InputError
from harness.laws.case import CHOICES, DTYPES, Case
from harness.laws.law import Violation
from harness.protocol.pyramid import ScalePyramid

SHRINK_S = 60.0
ROUNDS = (
    4  # of as many examples each: a law whose few examples all happen to be trivial draws more before it is unproven
)


@dataclass(frozen=True)
class Scope:
    """Which cases are tried.

    Args:
        examples: cases a law, >= 1.
        seed: of the cases.
        patch_nums: pyramids; empty = the small ones of `CHOICES`.
        dtype: "" = the laws' own choice, float64 wherever rounding could decide; otherwise every law takes networks of
            this dtype, and rounding is allowed for.
        device: of the networks.
        shrink_s: seconds that a failure may be shrunk for.

    Raises:
        InputError: a value outside its range.
    """

    examples: int = 20
    seed: int = 0
    patch_nums: tuple[tuple[int, ...], ...] = ()
    dtype: str = ""
    device: str = "cpu"
    shrink_s: float = SHRINK_S

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise InputError("examples", self.examples, "must be 1 or more", "pass examples=20")
        if self.dtype and self.dtype not in DTYPES:
            raise InputError("dtype", self.dtype, f"must be one of {', '.join(DTYPES)}", "pass float32")
        if not 0 <= self.shrink_s < float("inf"):
            raise InputError("shrink_s", self.shrink_s, "must be a number of seconds", "pass shrink_s=60")
        for sides in self.patch_nums:
            ScalePyramid(sides)

    def fitted(self, case: Case) -> Case:
        """Return a case on the scope's device, all networks in its dtype."""
        case = replace(case, device=self.device)
        return replace(case, dtype=self.dtype, draft_dtype="", exact=False) if self.dtype else case

    @property
    def pyramids(self) -> tuple[tuple[int, ...], ...]:
        """The pyramids that are tried, simplest first."""
        if self.patch_nums:
            return tuple(sorted(self.patch_nums, key=lambda sides: ScalePyramid(sides).L))
        return tuple(CHOICES["patch_nums"])


class Patience:
    """A test of cases that is shrunk for a limited time: afterwards every new case is passed over.

    Args:
        holds: raises `Violation` where a case breaks its law.
        shrink_s: seconds after the first failure.
    """

    def __init__(self, holds: Callable[[Case], None], shrink_s: float) -> None:
        self.holds, self.shrink_s = holds, shrink_s
        self.failed: dict[Case, Violation] = {}
        self.until = float("inf")

    def __call__(self, case: Case) -> None:
        """Test a case, unless it is known or the time is over."""
        if case in self.failed:
            raise self.failed[case]
        if time.monotonic() > self.until:
            return
        try:
            self.holds(case)
        except Violation as violation:
            self.failed[case] = violation
            self.until = min(self.until, time.monotonic() + self.shrink_s)
            raise


def search(holds: Callable[[Case], None], scope: Scope) -> None:
    """Test cases until one fails, and shrink that one.

    Args:
        holds: raises `Violation` where a case breaks its law.
        scope: which cases.

    Raises:
        Violation: of the simplest failing case that was found.
    """
    import hypothesis  # noqa: PLC0415  # a third of a second that other commands need not wait for

    from harness.laws.strategies import cases  # noqa: PLC0415  # likewise

    patience = Patience(holds, scope.shrink_s)
    limits = hypothesis.settings(
        max_examples=scope.examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
    )

    def tried(case: Case) -> None:
        patience(scope.fitted(case))

    strategy = cases(hypothesis.strategies.sampled_from(scope.pyramids))
    hypothesis.seed(scope.seed)(limits(hypothesis.given(strategy)(tried)))()
