"""Where a result comes from: error budgets and their source, code, weights, machine, versions and command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from harness.judge.ties import margin_bound
from harness.provenance import versions
from harness.report.html.page import Line, Sheet, Words
from harness.report.html.scales import sides_of
from harness.rounding.budget import Budget
from harness.rounding.precision import precision
from harness.runs.result import Verification


def budgets(result: Verification) -> list[object]:
    """Return how far rounding may move a number at every scale, and where that is from."""
    allowed = result.budget
    if allowed is None:
        return [Words("No budget was needed: nothing was decoded.")]
    made: list[object] = [Words(f"Source: {allowed.source}.")]
    sides, told = sides_of(result), result.about.get("budget")
    if not sides or not told:
        return made
    budget, cfg = Budget(**told), max((abs(task.request.cfg) for task in result.plan.tasks), default=0.0)
    rows = []
    for si in range(len(sides)):
        at = budget.guided(cfg, si / (len(sides) - 1) if len(sides) > 1 else 0.0)
        rows.append((f"{si}", *(f"{v:.3g}" for v in (at.logits, at.logits_rms, at.f_hat, margin_bound(at)))))
    head = ("scale", "guided score, any", "guided score, rms", "f_hat", "largest margin of a tie")
    return [*made, Sheet(f"What rounding may move, at the largest guidance of the run, cfg {cfg:g}", head, rows)]


def provenance(result: Verification, file: str) -> list[object]:
    """Return what the run was of, and the command that made it."""
    rows = [("networks", result.models), ("device", str(result.device)), ("run file", file or "not kept")]
    rows += _flat(result.about.get("identity") or {"versions": versions(), "precision": precision()})
    made: list[object] = [Sheet("What the run was of", ("what", "value"), rows, 2)]
    if words := result.about.get("command"):
        made.append(Line(shlex.join(["sdvar-harness", *map(str, words)]), "The command:"))
    return made


def here() -> list[object]:
    """Return what a result that was made just now is of."""
    rows = _flat({"versions": versions(), "precision": precision()})
    return [Sheet("What this was made with", ("what", "value"), rows, 2)]


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{name} ")
        elif value not in ("", None):
            rows.append((f"{before}{name}".replace("_", " "), str(value)))
    return rows
