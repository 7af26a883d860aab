"""Judgements on recordings, and changes of goldens, as tables and as JSON."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console

from harness.errors import one_line
from harness.files import compact
from harness.golden import CaseResult, Change, FileResult, golden_totals
from harness.judge import Verdict, worst_verdict
from harness.provenance import versions
from harness.report._tables import columns_of, print_table
from harness.report._terminal import say
from harness.rounding import precision
from harness.wording import number

SHOWN = 5  # defects of one case; the JSON file has more
LISTED = 50
DELTAS = ("delta_logits", "delta_f_hat", "delta_image")
COUNTED = ("draws", "identical", "not_judged", "soft_ties", "map_positions", "map_not_judged")


def show_recordings(results: Sequence[FileResult], console: Console, quiet: bool, verbose: bool = False) -> None:
    """Print judgements: a table a file, then ties, defects and what is unverified, the totals last.

    `quiet` leaves defects and the totals alone; `verbose` shows a row for every case that holds, and every tie.
    """
    for result in results:
        if not quiet:
            print_table(console, one_line(result.path), columns_of("recordings"), _rows(result, verbose))
        for case in result.cases:
            for tie in case.ties if verbose and not quiet else []:
                say(console, f"tie in {case.id}: {tie}")
            for defect in case.defects[:SHOWN]:
                say(console, f"DEFECT in {case.id}: {defect}")
            if len(case.defects) > SHOWN:
                say(console, f"DEFECT in {case.id}: {len(case.defects) - SHOWN} more")
        for line in result.defects:
            say(console, f"DEFECT in {result.path}: {line}")
        if result.unverified:
            say(console, f"UNVERIFIED {result.path}: {result.unverified}")
    say(console, golden_totals(results), worst_verdict([result.verdict for result in results]).value)


def _rows(result: FileResult, verbose: bool) -> list[list[str]]:
    """Return a row a case; those that hold share one, the last, unless all are asked for."""
    held = [case for case in result.cases if case.verdict in (Verdict.IDENTICAL, Verdict.TIE)]
    if verbose or len(held) < 2:
        held = []
    rows = [_row(one_line(case.id), [case]) for case in result.cases if case not in held]
    return rows + ([_row(f"{len(held)} cases that hold", held)] if held else [])


def _row(words: str, cases: Sequence[CaseResult]) -> list[str]:
    """Return what one case came to, or several of them together."""
    counts = [(c.draws, c.identical, len(c.ties), c.not_judged, len(c.defects)) for c in cases]
    deltas = [float(np.fmax.reduce([getattr(c, name) for c in cases])) for name in DELTAS]  # NaN: not recorded
    return [words, *(str(sum(each)) for each in zip(*counts, strict=True)), *map(number, deltas), _free_run(cases)]


def _free_run(cases: Sequence[CaseResult]) -> str:
    same = [case.free_run for case in cases if case.run is not None]
    if not same or all(same):
        return "same" if same else "-"
    return "differs" if len(same) == 1 else f"{sum(same)} of {len(same)} same"


def recordings_json(results: Sequence[FileResult], device: torch.device) -> bytes:
    """Return judgements as indented UTF-8 JSON; keys of design §7, lists run over files, cases and images."""
    cases = [case for result in results for case in result.cases]
    runs = [case.run for case in cases if case.run is not None]
    defects = [(case.id, defect) for case in cases for defect in case.defects]
    ties = [(case.id, tie) for case in cases for tie in case.ties]
    first = next(iter(defects + ties), None)
    return compact(
        {
            "contract": "token-identical",
            "verdict": worst_verdict([result.verdict for result in results]).value,
            "images": sum(case.request.B for case in cases),
            "cases": len(cases),
            **{name: sum(getattr(case, name) for case in cases) for name in COUNTED},
            "ties": len(ties),
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
    deltas = {name: getattr(case, name) for name in DELTAS}
    return {
        "verdict": case.verdict.value,
        **{name: getattr(case, name) for name in ("id", *COUNTED)},
        "ties": [tie.as_dict() for tie in case.ties],
        "defects": len(case.defects),
        "defects_listed": [defect.as_dict() for defect in case.defects[:LISTED]],
        **{name: None if math.isnan(delta) else delta for name, delta in deltas.items()},
        "free_run": case.free_run if case.run is not None else None,
    }


def show_golden_changes(title: str, changes: Sequence[Change], console: Console) -> None:
    rows = [
        [one_line(change.id), change.what, "-" if change.first_scale < 0 else str(change.first_scale),
         str(change.tokens), number(change.f_hat), number(change.image)]
        for change in changes
    ]  # fmt: skip
    print_table(console, title, columns_of("golden changes"), rows)
