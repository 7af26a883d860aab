"""A verification as JSON: stable keys that scripts depend on (design §7)."""

from __future__ import annotations

import math
from itertools import chain

from harness.files import compact
from harness.protocol.request import request_values
from harness.provenance import versions
from harness.report.terminal import repeated_by
from harness.rounding.precision import precision
from harness.runs.records import JudgedRow
from harness.runs.result import COUNTS, SettingResult, Verification

SCHEMA = 2  # docs/runs.md describes it; 1 was that of version 0.1, without requests and what the run is of


def as_json(result: Verification) -> bytes:
    """Return the result as indented UTF-8 JSON; counts are totals over settings, lists run over settings and images."""
    settings = [_setting(setting) for setting in result.settings]
    first = result.first_divergence

    def joined(name: str) -> list[object]:
        return list(chain.from_iterable(getattr(setting, name) for setting in result.settings))

    def total(name: str) -> int:
        return sum(setting.total(name) for setting in result.settings)

    document = {
        "schema": SCHEMA,
        "contract": result.contract,
        "verdict": result.verdict.value,
        **{name: total(name) for name in COUNTS},
        "defects": total("defects") + len(result.early),
        "first_divergence": first.as_dict() if first else None,
        "inconclusive": result.inconclusive,
        "so_far": result.so_far,
        "against": result.against or None,
        "changes": result.changes,
        "compared": result.compared,
        "not_compared": result.not_compared,
        "target_calls": joined("target_calls"),
        "target_rows": joined("target_rows"),
        "rounds": joined("rounds"),
        "accepted_scales": joined("accepted_scales"),
        "covers": result.covers,
        "coverage": result.coverage.as_dict(),
        "device": str(result.device),
        "dtype": str(result.dtype).removeprefix("torch."),
        "draft_dtype": str(result.draft_dtype).removeprefix("torch."),
        "precision": precision(),
        "models": result.models,
        "budget": _finite(vars(result.budget)) if result.budget else None,
        "versions": versions(),
        "seconds": result.seconds,
        "decode_seconds": result.decode_seconds,
        "wall_seconds": result.wall_seconds,
        "whole": result.is_whole,
        "alone": repeated_by(result),
        "run": result.about,
        "requests": [request_values(task.request) for task in result.plan.tasks],
        "settings": settings,
    }
    return compact(document)


def _finite(values: dict[str, object]) -> dict[str, object]:
    """Return the values with null for what JSON has no number for."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


def _row(row: JudgedRow) -> dict[str, object]:
    """Return what one request came to; `request` is its place in the document's list."""
    counts = {name: row.judgement.count(name) for name in COUNTS}
    return {
        "request": row.task,
        "verdict": row.judgement.verdict.value,
        **counts,
        "refused": row.refused,
        "seconds": row.seconds,
    }


def _setting(setting: SettingResult) -> dict[str, object]:
    return {
        "setting": vars(setting.settings),
        "draft": setting.draft,
        "refused": setting.refused,
        "contract": setting.contract,
        "verdict": setting.verdict.value,
        **{name: setting.total(name) for name in COUNTS},
        "ties_listed": [tie.as_dict() for judgement in setting.judgements for tie in judgement.ties],
        "defects_listed": [d.as_dict() for judgement in setting.judgements for d in judgement.defects[:20]],
        "target_calls": setting.target_calls,
        "target_rows": setting.target_rows,
        "rounds": setting.rounds,
        "accepted_scales": setting.accepted_scales,
        "judged": [_row(row) for row in setting.rows],
        "distances": [vars(distance) for distance in setting.distances],
        "seconds": setting.seconds,
        "reference_seconds": setting.reference_seconds,
    }
