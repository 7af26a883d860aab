"""The files that `bench --json`, `quality --json` and scripts/policy_costs.py wrote, read back.

The same rows (distances to seven digits), or one `InputError`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from harness.bench import Speed
from harness.errors import InputError
from harness.files import check_readable
from harness.quality import DRAFT, Estimate, Measured
from harness.schema import record_of
from scripts.policy_costs import DISTANCES, PolicyRow

QUALITY_SCHEMAS = (1, 2)  # docs/quality.md describes the last; 1 had a test of tokens, too
ESTIMATES = (
    "real", "real_kernel", "law", "law_kernel", "loss", "drift", "accuracy", "precision", "coverage", "nats",
)  # fmt: skip
Made = TypeVar("Made")


def read_json(path: Path, name: str, command: str, made: Callable[[Any], Made]) -> Made:
    """Return what is made of a file that `command` wrote. Raises `InputError` for anything else."""
    remedy = f"pass one of {command} --json"
    check_readable(path, name, remedy, f"is no file of {command} (no such file)")
    try:
        return made(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(name, str(path), f"is no file of {command} ({error})", remedy) from None


def _numbers(values: Any) -> Any:
    """Return the value of JSON with NaN for null."""
    if isinstance(values, dict):
        return {key: _numbers(item) for key, item in values.items()}
    return math.nan if values is None else values


def read_speed(path: Path) -> Speed:
    """Read a file of `bench --json`. Raises `InputError` for anything else."""
    return read_json(path, "speed", "bench", _speed)


def _speed(document: Any) -> Speed:
    stated = {field.name: document[field.name] for field in fields(Speed) if field.name in document}
    run = record_of(Speed, {**stated, "rows": [_numbers(values) for values in document["rows"]]})
    if not all(isinstance(row.ms, float) and row.ms > 0 and row.policy.strip() for row in run.rows):
        raise ValueError("a row without a time")
    return run


def read_policies(path: Path) -> tuple[str, list[PolicyRow]]:
    """Read the models' name and the rows of scripts/policy_costs.py. Raises `InputError` for anything else."""
    return read_json(path, "policies", "policy_costs", _policies)


def _policies(document: Any) -> tuple[str, list[PolicyRow]]:
    rows = []
    for values in document["rows"]:
        distances = zip(*(values["distances"][name] for name in DISTANCES), strict=True)
        rows.append(record_of(PolicyRow, {**values, "distances": list(distances)}))
    if not any(row.policy == DRAFT for row in rows) or not all(_is_whole(row) for row in rows):
        raise ValueError("a row without numbers, or no row of the draft alone")
    models: str = document["models"].strip()
    return models, rows


def _is_whole(row: PolicyRow) -> bool:
    """Tell whether a row has counts and distances of at least one image."""
    counts, images = (row.target_calls, row.target_rows, row.draft_rows), len(row.distances)
    return images > 0 and all(len(count) == images and all(isinstance(n, int) for n in count) for count in counts)


def read_quality(path: Path) -> Measured:
    """Read a file of `quality --json`. Raises `InputError` for anything else."""
    return read_json(path, "quality", "quality", _measured)


def _measured(document: Any) -> Measured:
    if document["schema"] not in QUALITY_SCHEMAS:
        raise ValueError(f"its schema is {document['schema']}, and this version reads {QUALITY_SCHEMAS}")
    rows = [_row_of(values) for values in document["rows"]]
    document = {"most_nats": None, **document}  # files of before losses in nats have none
    header = {field.name: document[field.name] for field in fields(Measured) if field.name != "rows"}
    if not rows:
        raise ValueError("no row")
    return record_of(Measured, {**header, "rows": rows})


def _row_of(values: Any) -> dict[str, Any]:
    for name in ("verdict", "tokens"):
        values.pop(name, None)
    estimates = {name: values[name] and _estimate_of(values[name]) for name in ESTIMATES if name in values}
    return {**values, **estimates, "nats_S": [_estimate_of(each) for each in values.get("nats_S", ())]}


def _estimate_of(values: Any) -> Estimate:
    unknown = {"raw": math.nan}  # an end that is not there lies at infinity
    given = {key: unknown.get(key, math.inf) if value is None else float(value) for key, value in values.items()}
    estimate = Estimate(**given)
    if not estimate.low <= estimate.high:
        raise ValueError("an interval without an inside")
    return estimate
