"""What a run says of itself, and the file that it is kept in: begun, or gone on with.

Promise: a file of another decoder, other weights, another version, machine, mode, plan or judgement is refused, and
what differs is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError
from harness.runs._database import REMEDY, is_begun
from harness.runs._plan import Plan
from harness.runs._record import RunRecord
from harness.runs._runfile import Kept, RunFile, read_run
from harness.wording import count_of


@dataclass(frozen=True)
class RunStore:
    """What is kept of a run, and where.


    Raises:
        InputError: nothing to resume.
    """

    file: Path | None = None  # the run file; None = nothing is kept
    resume: bool = False  # go on where the run in that file stopped
    # options of the command line that repeat the run, without those of what is drawn; None = no command line made it,
    # and nobody asks what the run is of
    recipe: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.resume and self.file is None:
            raise InputError("resume", True, "goes on with a run that was kept", "pass --run FILE too")

    def check_new(self) -> None:
        """Refuse a file that is there, before any work, where no run is gone on with. Raises `InputError`."""
        if self.file is not None and not self.resume and is_begun(self.file):
            raise InputError("run", str(self.file), "is there already", REMEDY)


UNKEPT = RunStore()


def begin(store: RunStore, record: RunRecord, plan: Plan) -> RunFile | None:
    """Return the file of a run, new or gone on with; None where nothing is kept.

    Raises:
        InputError: the file is there, is being written, or is that of another run.
    """
    if store.file is None:
        return None
    if not (store.resume and is_begun(store.file)):
        return RunFile.create(store.file, Kept(record, plan))
    file = RunFile.go_on(store.file)
    try:
        clauses = other_run(Kept(record, plan), read_run(store.file)[0])
        if clauses:
            rule = f"is the file of another run: {'; '.join(clauses[:3])}"
            raise InputError("resume", str(store.file), rule, "repeat the command that began it, or pass another --run")
    except BaseException:
        file.close()
        raise
    return file


def other_run(here: Kept, recorded: Kept) -> list[str]:
    """List why a recorded run is another one, one clause each."""
    clauses, plans = here.record.differences(recorded.record), (here.plan, recorded.plan)
    if len({(plan.settings, plan.drafts) for plan in plans}) > 1:
        settings = [", ".join(map(str, plan.settings)) for plan in plans]
        clauses.append(f"settings (here {settings[0]}, recorded {settings[1]})")
    if here.plan.tasks != recorded.plan.tasks:
        clauses.append(f"requests (here {_drawn(here.plan)}, recorded {_drawn(recorded.plan)})")
    return clauses


def _drawn(plan: Plan) -> str:
    requests = [task.request for task in plan.tasks]
    images = sum(request.B for request in requests)
    batches = count_of(len(requests), "batch", "batches")
    return f"{count_of(images, 'image')} in {batches} of {max(request.B for request in requests)} at most"
