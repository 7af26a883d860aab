"""`sdvar-harness bench-policies`: what each policy saves in target passes, and at which distance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from harness.bench.policies import EVERY_LENGTH, ONE_LENGTH, batches, markdown, measure
from harness.bench.stored import policies_document
from harness.commands.options import ModelOptions, flat_options
from harness.commands.scoreboard import replaced
from harness.errors import InputError
from harness.files import check_distinct, check_writable, write_whole


@dataclass(frozen=True)
class PolicyBenchOptions:
    """What to measure, and where it goes."""

    images: Annotated[int, typer.Option(help="Images per setting, labels in turn.")] = 200
    batch: Annotated[int, typer.Option(help="Images per batch.")] = 10
    seed: Annotated[int, typer.Option(help="Seed of all images.")] = 0
    cfg: Annotated[float, typer.Option(help="Guidance value; 0 = off.")] = 1.5
    policies: Annotated[str, typer.Option(help="Policies at every draft_len, by commas.")] = ",".join(EVERY_LENGTH)
    once: Annotated[str, typer.Option(help="Policies at draft_len 5 alone, by commas.")] = ",".join(ONE_LENGTH)
    draft_len: Annotated[str, typer.Option(help="Draft lengths, by commas.")] = "1,2,3,5,10"
    into: Annotated[Path | None, typer.Option(help="Markdown file: replace its table between the markers.")] = None
    picture: Annotated[Path | None, typer.Option(help="Write the chart to this SVG file.")] = None
    json: Annotated[Path | None, typer.Option(help="Write every count and distance to this file.")] = None

    def settings(self) -> list[tuple[str, str]]:
        """Return (policy, draft_len) pairs. Raises `InputError` for no pair, or a count below 1."""
        if min(self.images, self.batch) < 1:
            raise InputError("images", self.images, "and batch must be at least 1", "pass --images 200 --batch 10")
        lengths = [text for text in self.draft_len.split(",") if text]
        pairs = [(policy, text) for policy in self.policies.split(",") if policy for text in lengths]
        pairs += [(policy, "5") for policy in self.once.split(",") if policy]
        if not pairs:
            raise InputError("policies", self.policies, "names nothing", "pass --policies coupled")
        return pairs


@flat_options
def bench_policies(model: ModelOptions, options: PolicyBenchOptions) -> None:
    """Measure target calls, target rows and distances of the acceptance policies."""
    for name in ("into", "picture", "json"):
        check_writable(getattr(options, name), name)
    if options.into is not None:
        replaced(options.into, {"table": ""})
    outputs = {"json": options.json, "into": options.into, "picture": options.picture}
    check_distinct(outputs, model.files())
    settings = options.settings()
    models = model.load()
    models.check_finite()
    requests = list(batches(options.images, options.batch, models.target.config.classes, options.seed, options.cfg))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("decoding", total=len(requests) * len(settings))
        rows = measure(models, requests, settings, lambda: progress.advance(task))
    table = markdown(rows)
    if options.json is not None:
        write_whole(options.json, policies_document(models.name, str(models.device), rows))
    if options.picture is not None:
        from harness.bench.charts import policies, svg  # noqa: PLC0415  # matplotlib is asked for where one draws

        write_whole(options.picture, svg(policies(rows)))
    if options.into is not None:
        mode = f"{options.images} images, cfg {options.cfg:g}, {models.name} on {models.device.type}, {model.dtype}"
        write_whole(options.into, replaced(options.into, {"table": f"{mode}\n\n{table}"}).encode())
    print(table, end="")
