"""How a run is judged, and where: what is fixed before a decoder is built."""

from dataclasses import dataclass, field
from pathlib import Path

from harness.decoders._factory import Factory
from harness.decoders._limits import Limits
from harness.protocol import Contract, Settings
from harness.rounding import SHIPPED_BUDGETS


@dataclass(frozen=True)
class Other:
    """Another decoder to judge against, in the reference's place."""

    name: str  # of its factory
    settings: tuple[Settings, ...]  # one for each of the decoder's, in order
    factory: Factory | bytes | None = None  # builds it, or cloudpickle's bytes of one that does; None = by name


@dataclass(frozen=True)
class Terms:
    """How a run is judged.

    Args:
        contract: what the decoder must keep at least; None = what it claims.
        sequential: the decoder drafts nothing, and is not asked to.
        in_process: run the decoder in the judge's process: for a debugger.
        limits: time and memory of a process of its own.
        budgets: file of stored error budgets; a mode that is not in it is measured.
        refusals: count a request that the decoder refuses, in place of raising its error.
        first_only: stop at the first defect: for hunts.
        against: another decoder, in the reference's place: what changed, and from which scale on?
        covers: the run is a covering design.
        laws: try every law in so many cases, too (`verify`); 0 = none, None = as ``sdvar-harness verify`` does.
        strict: what a decoder leaves behind in its process is a defect, not a remark.
        unasked: decodes of that design that are not in the plan, since the decoder cannot be built for them.
    """

    contract: Contract | None = None
    sequential: bool = False
    in_process: bool = False
    limits: Limits = field(default_factory=Limits)
    budgets: Path = SHIPPED_BUDGETS
    refusals: bool = False
    first_only: bool = False
    against: Other | None = None
    covers: bool = False
    unasked: int = 0
    laws: int | None = None
    strict: bool = False
