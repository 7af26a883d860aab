"""`sdvar-harness bench`: time speculative against sequential decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from harness.bench.floor import Machine
from harness.bench.speed import Bench, SpeedRow
from harness.bench.stored import Speed
from harness.commands.options import ModelOptions, ReportOptions, flat_options, integers
from harness.errors import InputError
from harness.files import write_whole
from harness.protocol.request import Request
from harness.report.terminal import plain_console
from harness.speculative.policies import parse


@dataclass(frozen=True)
class BenchOptions:
    """What to time."""

    batches: Annotated[str, typer.Option(help="Images per batch: 1,8.")] = "1"
    seeds: Annotated[str, typer.Option(help="Seeds: 0,3 or the range 0:4; times are means over them.")] = "0"
    draft_len: Annotated[str, typer.Option(help="Scales proposed per round: 2,5,10.")] = "2,5,10"
    policies: Annotated[
        str, typer.Option(help="By commas; imposed:RATE keeps drafted scales at that rate, whatever they are.")
    ] = "imposed:1"
    bonus: Annotated[
        bool, typer.Option("--bonus", help="Let the target finish the scale behind the drafted ones too.")
    ] = False
    graphs: Annotated[bool, typer.Option("--graphs", help="Record and replay device work as CUDA graphs.")] = False
    repeats: Annotated[int, typer.Option(help="Timed decodes per figure; the median is shown.")] = 5

    def settings(self) -> list[tuple[str, int]]:
        """Return (policy, draft_len) pairs. Raises `InputError` for an unknown policy or fewer than one repeat."""
        if self.repeats < 1:
            raise InputError("repeats", self.repeats, "must be at least 1", "pass --repeats 5")
        policies = [parse(text, bench=True).name for text in self.policies.split(",")]
        return [(name, length) for length in integers("draft_len", self.draft_len, "2,5") for name in policies]

    def requests(self, classes: int) -> list[list[Request]]:
        """Return a request a seed for every batch size. Raises `InputError` for a size below 1, or no seed."""
        sizes = integers("batches", self.batches, "1,8")
        if min(sizes) < 1:
            raise InputError("batches", self.batches, "must all be at least 1", "pass --batches 1,8")
        seeds = integers("seeds", self.seeds, "0:4")
        return [[_request(seed, size, classes) for seed in seeds] for size in sizes]


def _request(seed: int, size: int, classes: int) -> Request:
    """Return a batch of its own labels and image addresses, so that imposed coins differ from seed to seed."""
    images = tuple(range(seed * size, (seed + 1) * size))
    return Request(tuple(image % classes for image in images), seed, images=images)


@flat_options
def bench(model: ModelOptions, options: BenchOptions, report: ReportOptions) -> None:
    """Time sequential and speculative decoding in one mode, and compare with what passes and machine allow."""
    report.check(**model.files())
    settings = options.settings()
    options.requests(1)
    models = model.load()
    models.check_finite()
    requests = options.requests(models.target.config.classes)
    machine = Machine.measure(models.device, models.target.dtype)
    if models.device.type == "cuda":
        torch.cuda.empty_cache()
    bench = Bench(models, options.graphs, options.repeats, machine, options.bonus)
    rows: list[SpeedRow] = []
    with Progress(console=Console(stderr=True), transient=True, disable=report.quiet) as progress:
        task = progress.add_task("timing", total=len(requests) * len(settings))
        for same_size in requests:
            for row in bench.rows(same_size, settings):
                rows.append(row)
                progress.advance(task)
    draft_dtype = str(models.draft.dtype).removeprefix("torch.")
    mode = "TF32" if model.tf32 else model.dtype
    run = Speed(models.name, mode, draft_dtype, options.graphs, options.bonus, machine, rows)
    if report.json is not None:
        write_whole(report.json, run.document())
    console = plain_console()
    console.print(sequential_table(f"{models.name} on {models.device}, {run.title}", rows))
    console.print(table("speculative decoding" + (", bonus scale" if options.bonus else ""), rows))
    console.print(str(machine), highlight=False)


def sequential_table(mode: str, rows: list[SpeedRow]) -> Table:
    """Return what sequential decoding takes, a line a batch size; milliseconds per batch."""
    shown = _table(mode, "batch", "reference", "target", "its passes", "their floor", "draft", "its passes", "memory")
    for batch, row in {row.batch: row for row in rows}.items():
        target, draft = row.target, row.draft
        times = (row.reference_ms, target.ms, target.passes_ms, target.floor_ms, draft.ms, draft.passes_ms)
        memory = f"{target.peak / 2**30:.2f} GiB" if target.peak else "-"
        shown.add_row(f"{batch}", *(_number(ms, ".1f") for ms in times), memory)
    return shown


def table(title: str, rows: list[SpeedRow]) -> Table:
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
