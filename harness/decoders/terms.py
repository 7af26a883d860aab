"""How a run is judged, and where: what is fixed before a decoder is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.decoders.factory import Factory
from harness.decoders.process import Limits
from harness.errors import InputError
from harness.protocol.contract import Contract
from harness.protocol.decoder import Settings
from harness.rounding.stored import SHIPPED

MOST_WORKERS = 1024


@dataclass(frozen=True)
class Other:
    """Another decoder to judge against, in the reference's place.

    Args:
        name: of its factory.
        settings: one for each of the decoder's, in order.
        factory: builds it, or cloudpickle's bytes of one that does; None = by name.
    """

    name: str
    settings: tuple[Settings, ...]
    factory: Factory | bytes | None = None


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
        unasked: decodes of that design that are not in the plan, since the decoder cannot be built for them.
    """

    contract: Contract | None = None
    sequential: bool = False
    in_process: bool = False
    limits: Limits = field(default_factory=Limits)
    budgets: Path = SHIPPED
    refusals: bool = False
    first_only: bool = False
    against: Other | None = None
    covers: bool = False
    unasked: int = 0


@dataclass(frozen=True)
class Keeping:
    """Where a run is done, and what is kept of it.

    Args:
        workers: processes on this machine; 1 = this process alone, 0 = one a GPU that the device stands for.
        cluster: address of a Dask scheduler whose workers take the requests; empty = none.
        file: the run file; None = nothing is kept.
        resume: go on where the run in that file stopped.
        recipe: options of the command line that repeat the run, without those of what is drawn; None = there is none,
            and nobody asks of what the run is.
        device: as it was asked for, since ``cuda`` stands for every GPU; empty = where the networks lie.

    Raises:
        InputError: a number of workers that nobody has; workers of both kinds; nothing to resume.
    """

    workers: int = 1
    cluster: str = ""
    file: Path | None = None
    resume: bool = False
    recipe: Mapping[str, str] | None = None
    device: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= MOST_WORKERS:
            raise InputError("workers", self.workers, f"must lie in 0..{MOST_WORKERS}", "pass --workers 0: one a GPU")
        if self.cluster and self.workers > 1:
            raise InputError("cluster", self.cluster, "brings its own workers", "drop --workers")
        if self.resume and self.file is None:
            raise InputError("resume", True, "goes on with a run that was kept", "pass --run FILE too")
