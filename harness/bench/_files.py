"""Measurements as files: what `bench` and `bench-policies` write and `scoreboard` reads.

Promise: a file says what was measured on what; reading it back gives the same rows (distances to seven digits), or one
`InputError`.
"""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.bench._policy_costs import PolicyRow
from harness.bench._speed import Machine, SpeedRow
from harness.files import compact, finite, read_json
from harness.provenance import versions
from harness.quality import DRAFT
from harness.rounding import precision
from harness.runs import record_of

DISTANCES = ("tokens", "f_hat", "pixels")


@dataclass(frozen=True)
class Speed:
    """One run of `bench`."""

    models: str  # name of the pair
    mode: str  # dtype, or TF32
    draft_dtype: str  # of the draft
    graphs: bool  # recorded work; else kernel by kernel
    bonus: bool  # the scale after the drafted ones is finished too
    machine: Machine  # where
    rows: list[SpeedRow]  # measurements
    compiled: bool = False  # the networks' blocks are; files from before there was a choice do not say

    @property
    def title(self) -> str:
        """Mode in words."""
        same = self.draft_dtype == ("float32" if self.mode == "TF32" else self.mode)
        named = self.mode if same else f"{self.mode}, draft {self.draft_dtype}"
        launched = "CUDA graphs" if self.graphs else "kernel by kernel"
        return f"{named}, {launched}{', compiled' if self.compiled else ''}"

    def document(self) -> bytes:
        return compact({**finite(asdict(self)), "precision": precision(), "versions": versions()})


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


def policies_document(models: str, device: str, rows: list[PolicyRow]) -> bytes:
    """Return the rows of `bench-policies` as JSON, with what made them."""
    columns = [{name: [float(f"{getattr(d, name):.7g}") for d in row.distances] for name in DISTANCES} for row in rows]
    listed = [{**vars(row), "distances": distances} for row, distances in zip(rows, columns, strict=True)]
    header = {"models": models, "device": device, "precision": precision(), "versions": versions()}
    return compact({**header, "rows": listed})


def read_policies(path: Path) -> tuple[str, list[PolicyRow]]:
    """Read the models' name and the rows of `bench-policies --json`. Raises `InputError` for anything else."""
    return read_json(path, "policies", "bench-policies", _policies)


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
