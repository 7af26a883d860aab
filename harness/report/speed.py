"""Timings of `bench` on the terminal: sequential decoding, speculative decoding, the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from harness.bench.speed import SpeedRow
from harness.bench.stored import Speed


def show(run: Speed, device: str, console: Console) -> None:
    """Print one run."""
    console.print(sequential_table(f"{run.models} on {device}, {run.title}", run.rows))
    console.print(speculative_table("speculative decoding" + (", bonus scale" if run.bonus else ""), run.rows))
    console.print(str(run.machine))


def sequential_table(title: str, rows: Sequence[SpeedRow]) -> Table:
    """Return what sequential decoding takes, a line a batch size; milliseconds per batch."""
    shown = _table(title, "batch", "reference", "target", "its passes", "their floor", "draft", "its passes", "memory")
    for batch, row in {row.batch: row for row in rows}.items():
        target, draft = row.target, row.draft
        times = (row.reference_ms, target.ms, target.passes_ms, target.floor_ms, draft.ms, draft.passes_ms)
        memory = f"{target.peak / 2**30:.2f} GiB" if target.peak else "-"
        shown.add_row(f"{batch}", *(_number(ms, ".1f") for ms in times), memory)
    return shown


def speculative_table(title: str, rows: Sequence[SpeedRow]) -> Table:
    """Return what speculative decoding takes; milliseconds per batch."""
    headers = ("batch", "policy", "draft\nlen", "ms", "draft\npasses", "verify\npasses", "floor", "target\ncalls")
    shown = _table(title, *headers, "speed-\nup", "passes\nallow", "share", "extra\nmemory")
    for row in rows:
        times = (row.ms, row.draft_passes_ms, row.target_passes_ms, row.floor_ms)
        cells = [f"{row.batch}", row.policy, f"{row.draft_len}", *(_number(ms, ".1f") for ms in times)]
        cells += [f"{row.target_calls:.2f}", f"{row.speed_up:.2f}", _number(row.allowed, ".2f")]
        cells += [_number(row.speed_up / row.allowed, ".0%"), _number(row.extra_memory, ".1%")]
        shown.add_row(*cells)
    return shown


def _table(title: str, *headers: str) -> Table:
    shown = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in headers:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
