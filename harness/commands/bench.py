"""`sdvar-harness bench`: time speculative against sequential decoding."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from harness.bench.speed import Bench, Row
from harness.commands.options import ModelOptions, ReportOptions, flat_options, integers
from harness.errors import InputError
from harness.files import write_whole
from harness.precision import precision
from harness.report.as_json import compact, versions
from harness.report.terminal import plain_console
from harness.request import Request


@dataclass(frozen=True)
class BenchOptions:
    """What to time."""

    batches: Annotated[str, typer.Option(help="Images per batch: 1,8.")] = "1"
    draft_len: Annotated[str, typer.Option(help="Scales proposed per round: 2,5,10.")] = "2,5,10"
    rates: Annotated[str, typer.Option(help="Imposed share of drafted scales that stand: 0,0.5,1.")] = "1"
    graphs: Annotated[bool, typer.Option("--graphs", help="Record and replay passes as CUDA graphs.")] = False
    repeats: Annotated[int, typer.Option(help="Timed decodes per figure; the median is shown.")] = 5

    def parsed_rates(self) -> list[float]:
        """Return the rates. Raises `InputError` for anything outside [0, 1]."""
        try:
            rates = [float(part) for part in self.rates.split(",")]
        except ValueError:
            rates = [-1.0]
        if not all(0 <= rate <= 1 for rate in rates):
            raise InputError("rates", self.rates, "must be numbers in [0, 1]", "pass --rates 0,0.5,1")
        return rates


@flat_options
def bench(model: ModelOptions, options: BenchOptions, report: ReportOptions) -> None:
    """Time sequential and speculative decoding in one mode, acceptance imposed at stated rates."""
    report.check()
    batches, lengths = integers("batches", options.batches, "1,8"), integers("draft_len", options.draft_len, "2,5")
    rates = options.parsed_rates()
    if options.repeats < 1 or min(batches) < 1:
        raise InputError("repeats", options.repeats, "and every batch must be at least 1", "pass --repeats 5")
    models = model.load()
    rows: list[Row] = []
    bench = Bench(models, options.graphs, options.repeats)
    for batch in batches:
        labels = tuple(k % models.target.config.classes for k in range(batch))
        request = Request(labels, seed=0)
        bench.check_equal(request)
        rows += bench.rows(request, list(lengths), rates)
    mode = f"{models.name} on {models.device}, {model.dtype}{' TF32' if model.tf32 else ''}"
    mode += ", CUDA graphs" if options.graphs else ", kernel by kernel"
    if report.json is not None:
        listed = [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(row).items()} for row in rows
        ]  # NaN is not JSON
        document = {"mode": mode, "precision": precision(), "versions": versions(), "rows": listed}
        write_whole(report.json, compact(document))
    plain_console().print(table(mode, rows))


def table(mode: str, rows: list[Row]) -> Table:
    """Return the measurements as a table; milliseconds per batch."""
    shown = Table(title=mode, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    headers = ("batch", "draft_len", "accept-\nance", "target\nms", "draft\nms", "specu-\nlative ms", "target\ncalls")
    for name in (*headers, "speed-up", "passes\nallow", "share"):
        shown.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row.batch}", f"{row.draft_len}", f"{row.rate:.0%}", f"{row.target_ms:.1f}", f"{row.draft_ms:.1f}"]
        cells += [f"{row.speculative_ms:.1f}", f"{row.target_calls:.2f}", f"{row.speed_up:.2f}"]
        known = not math.isnan(row.allowed)
        cells += [f"{row.allowed:.2f}", f"{row.speed_up / row.allowed:.0%}"] if known else ["-", "-"]
        shown.add_row(*cells)
    return shown
