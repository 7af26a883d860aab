"""Judgements on recordings, and changes of goldens, as tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from harness.errors import one_line
from harness.files import compact
from harness.golden.diff import Change
from harness.golden.result import CaseResult, FileResult, totals
from harness.judge.verdict import worst
from harness.provenance import versions
from harness.report.terminal import say
from harness.rounding.precision import precision

SHOWN = 5  # defects of one case; the JSON file has more
LISTED = 50
UNJUDGED = ("not_judged", "soft_ties", "map_positions", "map_not_judged")


def show_results(results: Sequence[FileResult], console: Console, quiet: bool) -> None:
    """Print judgements: a table a file, then ties, defects and what is unverified, the totals last."""
    for result in results:
        if not quiet and result.cases:
            console.print(_table(result))
        for case in result.cases:
            for tie in case.ties if not quiet else []:
                say(console, f"tie in {case.id}: {tie}")
            for defect in case.defects[:SHOWN]:
                say(console, f"DEFECT in {case.id}: {defect}")
            if len(case.defects) > SHOWN:
                say(console, f"DEFECT in {case.id}: {len(case.defects) - SHOWN} more")
        for line in result.defects:
            say(console, f"DEFECT in {result.path}: {line}")
        if result.unverified:
            say(console, f"UNVERIFIED {result.path}: {result.unverified}")
    say(console, totals(results))


def _table(result: FileResult) -> Table:
    table = Table(title=one_line(result.path), box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("case", no_wrap=True)
    for name in (
        "draws",
        "identical",
        "ties",
        "not judged",
        "defects",
        "|Δlogits|",
        "|Δf_hat|",
        "|Δimage|",
        "free run",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for case in result.cases:
        counts = (case.draws, case.identical, len(case.ties), case.not_judged, len(case.defects))
        deltas = (case.delta_logits, case.delta_f_hat, case.delta_image)
        cells = [*map(str, counts), *map(_number, deltas)]
        table.add_row(one_line(case.id), *cells, "-" if case.run is None else "same" if case.free_run else "differs")
    return table


def results_as_json(results: Sequence[FileResult], device: torch.device) -> bytes:
    """Return judgements as indented UTF-8 JSON; keys of design §7, lists run over files, cases and images."""
    cases = [case for result in results for case in result.cases]
    runs = [case.run for case in cases if case.run is not None]
    defects = [(case.id, defect) for case in cases for defect in case.defects]
    ties = [(case.id, tie) for case in cases for tie in case.ties]
    first = next(iter(defects + ties), None)
    return compact(
        {
            "contract": "token-identical",
            "verdict": worst([result.verdict for result in results]).value,
            "images": sum(case.request.B for case in cases),
            "cases": len(cases),
            "draws": sum(case.draws for case in cases),
            "identical": sum(case.identical for case in cases),
            "ties": len(ties),
            **{name: sum(getattr(case, name) for case in cases) for name in UNJUDGED},
            "defects": len(defects) + sum(len(result.defects) for result in results),
            "first_divergence": {"case": first[0], **first[1].as_dict()} if first else None,
            "target_calls": [calls for run in runs for calls in run.target_calls],
            "target_rows": [rows for run in runs for rows in run.target_rows],
            "rounds": [len(rounds) for run in runs for rounds in run.rounds],
            "accepted_scales": [[turn.accepted for turn in rounds] for run in runs for rounds in run.rounds],
            "device": str(device),
            "dtype": "float32",
            "precision": precision(),
            "versions": versions(),
            "files": [
                {
                    "path": result.path,
                    "verdict": result.verdict.value,
                    "unverified": result.unverified or None,
                    "defects": result.defects,
                    "cases": [_case(case) for case in result.cases],
                }
                for result in results
            ],
        }
    )


def _case(case: CaseResult) -> dict[str, object]:
    deltas = {name: getattr(case, name) for name in ("delta_logits", "delta_f_hat", "delta_image")}
    return {
        "id": case.id,
        "verdict": case.verdict.value,
        "draws": case.draws,
        "identical": case.identical,
        "ties": [tie.as_dict() for tie in case.ties],
        **{name: getattr(case, name) for name in UNJUDGED},
        "defects": len(case.defects),
        "defects_listed": [defect.as_dict() for defect in case.defects[:LISTED]],
        **{name: None if math.isnan(delta) else delta for name, delta in deltas.items()},
        "free_run": case.free_run if case.run is not None else None,
    }


def changes_table(title: str, changes: Sequence[Change]) -> Table:
    """Return what a regeneration changes, a row a case."""
    table = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("case", no_wrap=True)
    for name in ("change", "first scale", "tokens", "max |Δf_hat|", "max |Δimage|"):
        table.add_column(name, justify="right", no_wrap=True)
    for change in changes:
        first = "-" if change.first_scale < 0 else str(change.first_scale)
        table.add_row(
            one_line(change.id), change.what, first, str(change.tokens), _number(change.f_hat), _number(change.image)
        )
    return table


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"
