"""A run file read back as the result that its run had, or would have had if it had ended where the file does.

Promise: nothing is decoded or judged anew; counts, verdict and first divergence are those that `verify` printed.
"""

from __future__ import annotations

from pathlib import Path

import torch

from harness.protocol.contract import Contract
from harness.runs.claims import LawsTried, QualityClaims
from harness.runs.cover import say_what_was_covered
from harness.runs.decodes import keeps_dying, put_together, widest
from harness.runs.description import RunDescription
from harness.runs.records import JudgedRow, unreadable
from harness.runs.result import Verification
from harness.runs.runfile import Kept, read_run
from harness.runs.setting import SettingResult


def recorded_result(path: Path, name: str = "run") -> Verification:
    """Return the result of a run file, of a run that goes on or was stopped, too.

    Args:
        path: the file.
        name: what it is to the user.

    Raises:
        InputError: it is no run file, of another schema, or does not say what its run was of.
    """
    run, rows = read_run(path, name)
    try:
        return _result(run, rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise unreadable(name, path, error) from None


def _result(run: Kept, rows: list[JudgedRow]) -> Verification:
    description = RunDescription.from_dict(run.about)
    networks, terms, budget, more = description.networks, description.terms, description.budget, description.more
    pyramid, contracts = networks.pyramid, [Contract.of(name) for name in description.contracts]
    result = Verification(
        [SettingResult(settings, contract) for settings, contract in zip(run.plan.settings, contracts, strict=True)],
        widest(budget, pyramid, [task.request for task in run.plan.tasks]),
        torch.device(networks.device), _dtype(networks.dtype), _dtype(networks.draft_dtype), networks.title,
        plan=run.plan, about=dict(run.about),
    )  # fmt: skip
    other = terms.other(0)
    result.against = other.name if other else ""
    by_task: dict[int, list[JudgedRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
        result.decode_seconds += row.seconds + row.reference_seconds
    put_together(result, by_task, pyramid, budget)
    dead = {number for number, setting in enumerate(result.settings) if keeps_dying(setting.rows)}  # left alone
    result.unfinished = sum(t.number not in by_task and not dead.issuperset(t.settings) for t in run.plan.tasks)
    if "claims" in more:
        result.take_quality(QualityClaims.from_dict(more["claims"]))
    if "laws" in more:
        result.take_laws(LawsTried.from_dict(more["laws"]))
    if terms.covers:
        say_what_was_covered(result, terms.terms())
    return result


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype
