"""A run file read back as the result that its run had, or would have had if it had ended where the file does.

Promise: nothing is decoded or judged anew; counts, verdict and first divergence are those that `verify` printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.decoders.terms import Terms
from harness.protocol.contract import Contract
from harness.protocol.pyramid import ScalePyramid
from harness.rounding.budget import Budget
from harness.runs.claims import LawsTried, QualityClaims
from harness.runs.cover import say_what_was_covered
from harness.runs.decodes import keeps_dying, put_together, widest
from harness.runs.records import JudgedRow, unreadable
from harness.runs.result import Verification
from harness.runs.runfile import Kept, read
from harness.runs.setting import SettingResult


def recorded(path: Path, name: str = "run") -> Verification:
    """Return the result of a run file, of a run that goes on or was stopped, too.

    Args:
        path: the file.
        name: what it is to the user.

    Raises:
        InputError: it is no run file, of another schema, or does not say what its run was of.
    """
    run, rows = read(path, name)
    try:
        return _result(run, rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise unreadable(name, path, error) from None


def _result(run: Kept, rows: list[JudgedRow]) -> Verification:
    about, networks = run.about, run.about["networks"]
    pyramid, budget = ScalePyramid(tuple(networks["patch_nums"])), Budget(**about["budget"])
    contracts = [Contract.of(name) for name in about["contracts"]]
    result = Verification(
        [SettingResult(settings, contract) for settings, contract in zip(run.plan.settings, contracts, strict=True)],
        widest(budget, pyramid, [task.request for task in run.plan.tasks]),
        torch.device(networks["device"]), _dtype(networks["dtype"]), _dtype(networks["draft_dtype"]), networks["title"],
        plan=run.plan, about=about,
    )  # fmt: skip
    terms: dict[str, Any] = about["terms"]
    result.against = terms["against"]["name"] if terms["against"] else ""
    by_task: dict[int, list[JudgedRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
        result.decode_seconds += row.seconds + row.reference_seconds
    put_together(result, by_task, pyramid, budget)
    dead = {number for number, setting in enumerate(result.settings) if keeps_dying(setting.rows)}  # left alone
    result.unfinished = sum(t.number not in by_task and not dead.issuperset(t.settings) for t in run.plan.tasks)
    if "claims" in about:
        result.take_quality(QualityClaims.from_dict(about["claims"]))
    if "laws" in about:
        result.take_laws(LawsTried.from_dict(about["laws"]))
    if terms["covers"]:
        say_what_was_covered(result, Terms(sequential=terms["sequential"], unasked=terms["unasked"]))
    return result


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype
