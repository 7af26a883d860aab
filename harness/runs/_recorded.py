"""A run file read back as the result that its run had, or would have had if it had ended where the file does.

Promise: nothing is decoded or judged anew; counts, verdict and first divergence are those that `verify` printed.
"""

from pathlib import Path

import torch

from harness.runs._cover import say_what_was_covered
from harness.runs._decodes import keeps_dying, put_together, widest
from harness.runs._records import JudgedRow, readable
from harness.runs._result import Verification
from harness.runs._runfile import Kept, read_run
from harness.runs._setting import SettingResult


def recorded_result(path: Path) -> Verification:
    """Return the result of a run file, of an unfinished run, too. Raises `InputError` where it is none."""
    run, rows = read_run(path)
    with readable("run", path):
        return _result(run, rows)


def _result(run: Kept, rows: list[JudgedRow]) -> Verification:
    record, networks, terms = run.record, run.record.networks, run.record.terms
    requests = [task.request for task in run.plan.tasks]
    settings = zip(run.plan.settings, record.contracts, strict=True)
    result = Verification(
        [SettingResult(setting, contract) for setting, contract in settings],
        widest(record.budget, networks.pyramid, requests),
        torch.device(networks.device), *networks.dtypes, networks.title, plan=run.plan, record=record,
    )  # fmt: skip
    if terms.against is not None:
        of = record.identity
        result.tested, result.against = of.decoder.title if of else "", terms.against.name
        result.against = of.against.title if of and of.against else result.against
    by_task: dict[int, list[JudgedRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
        result.decode_seconds += row.seconds + row.reference_seconds
    put_together(result, by_task, networks, record.budget)
    dead = {number for number, setting in enumerate(result.settings) if keeps_dying(setting.rows)}  # left alone
    result.unfinished = sum(t.number not in by_task and not dead.issuperset(t.settings) for t in run.plan.tasks)
    if terms.covers:
        say_what_was_covered(result, terms)
    if run.claims is not None:
        result.take_quality(run.claims, run.quality)
    if run.laws is not None:
        result.take_laws(run.laws)
    return result
