"""What a run says of itself, and the file that it is kept in: begun, or gone on with.

Promise: a file of another decoder, other weights, another version, machine, mode, plan or judgement is refused, and
what differs is named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from harness.decoders.terms import Terms
from harness.errors import InputError
from harness.models.pair import ModelPair
from harness.protocol.contract import Contract
from harness.protocol.request import request_values
from harness.rounding.budget import Budget
from harness.runs.database import REMEDY, is_begun
from harness.runs.identity import Identity, differences
from harness.runs.plan import Plan
from harness.runs.records import against_values, to_json
from harness.runs.runfile import Kept, RunFile, read_run
from harness.wording import count_of


@dataclass(frozen=True)
class RunStore:
    """What is kept of a run, and where.

    Args:
        file: the run file; None = nothing is kept.
        resume: go on where the run in that file stopped.
        recipe: options of the command line that repeat the run, without those of what is drawn; None = no command line
            made it, and nobody asks what the run is of.

    Raises:
        InputError: nothing to resume.
    """

    file: Path | None = None
    resume: bool = False
    recipe: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.resume and self.file is None:
            raise InputError("resume", True, "goes on with a run that was kept", "pass --run FILE too")

    def check_new(self) -> None:
        """Refuse a file that is there, before any work, where no run is gone on with. Raises `InputError`."""
        if self.file is not None and not self.resume and is_begun(self.file):
            raise InputError("run", str(self.file), "is there already", REMEDY)


UNKEPT = RunStore()
FREE = ("command", "recipe")  # may differ between two parts of a run: file names, the number of workers


def describe(
    models: ModelPair,
    identity: Identity | None,
    store: RunStore,
    terms: Terms,
    judged: tuple[Plan, Sequence[Contract], Budget],
) -> dict[str, Any]:
    """Return what repeats a run, as plain values.

    Args:
        models: of which their names and sizes are told; the rest is in the identity.
        identity: of `identity_of`.
        store: its recipe.
        terms: how it is judged.
        judged: the plan, what the decoders claim, and the budget.
    """
    plan, contracts, budget = judged
    return {
        "identity": identity.as_dict() if identity else {},
        "networks": {
            "title": models.title,
            "device": str(models.device),
            "dtype": str(models.target.dtype).removeprefix("torch."),
            "draft_dtype": str(models.draft.dtype).removeprefix("torch."),
            "patch_nums": list(models.pyramid.patch_nums),
            "V": models.target.config.V,
            "classes": models.target.config.classes,
        },
        "terms": {
            "contract": terms.contract.letter if terms.contract else "",
            "sequential": terms.sequential,
            "in_process": terms.in_process,
            "limits": asdict(terms.limits),
            "against": against_values(terms.against),
            "covers": terms.covers,
            "unasked": terms.unasked,
        },
        "contracts": [str(contract) for contract in contracts],
        "budget": asdict(budget),
        "images": plan.images,
        "recipe": None if store.recipe is None else dict(store.recipe),
        "command": sys.argv[1:],
    }


def begin(store: RunStore, about: Mapping[str, Any], plan: Plan) -> RunFile | None:
    """Return the file of a run, new or gone on with; None where nothing is kept.

    Raises:
        InputError: the file is there, is being written, or is that of another run.
    """
    if store.file is None:
        return None
    path = store.file
    if not (store.resume and is_begun(path)):
        return RunFile.create(path, Kept(dict(about), plan))
    file = RunFile.go_on(path)
    try:
        kept, _ = read_run(path)
        found = other_run(about, plan, kept)
        if found:
            rule = f"is the file of another run: {'; '.join(found[:3])}"
            raise InputError("resume", str(path), rule, "repeat the command that began it, or pass another --run")
    except BaseException:
        file.close()
        raise
    return file


def other_run(about: Mapping[str, Any], plan: Plan, kept: Kept) -> list[str]:
    """List why a recorded run is another one, one clause each."""
    here = json.loads(to_json({key: value for key, value in about.items() if key not in FREE}))
    identity = differences(here.pop("identity"), cast("Mapping[str, object]", kept.about.get("identity", {})))
    recorded = {key: kept.about.get(key) for key in here}
    found = identity + differences(here, recorded)
    if (plan.settings, plan.drafts) != (kept.plan.settings, kept.plan.drafts):
        said = [", ".join(map(str, of.settings)) for of in (plan, kept.plan)]
        found.append(f"settings (here {said[0]}, recorded {said[1]})")
    tasks = [[(to_json(request_values(t.request)), t.settings) for t in of.tasks] for of in (plan, kept.plan)]
    if tasks[0] != tasks[1]:
        found.append(f"requests (here {_drawn(plan)}, recorded {_drawn(kept.plan)})")
    return found


def _drawn(plan: Plan) -> str:
    requests = [task.request for task in plan.tasks]
    images = sum(request.B for request in requests)
    batches = count_of(len(requests), "batch", "batches")
    return f"{count_of(images, 'image')} in {batches} of {max(request.B for request in requests)} at most"
