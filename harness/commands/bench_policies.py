"""`sdvar-harness bench-policies`: what each policy saves in target passes, and at which distance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.bench.files import policies_document
from harness.bench.policy_costs import EVERY_LENGTH, ONE_LENGTH, batches, markdown, measure
from harness.commands import options
from harness.commands.listed import check_most
from harness.errors import InputError
from harness.files import check_outputs, write_whole
from harness.pool.employ import Execution
from harness.report.progress import LongWork
from harness.report.speed import show_policies
from harness.report.tables import replaced_parts
from harness.report.terminal import plain_console
from harness.wording import count_of


def bench_policies(
    models: options.Models = "digits",
    draft: options.Draft = None,
    target: options.Target = None,
    vae: options.Vae = None,
    patch_nums: options.PatchNums = "",
    draft_noise: options.DraftNoise = None,
    device: options.Device = "cpu",
    tf32: options.Tf32 = False,
    dtype: options.Dtype = "float32",
    draft_dtype: options.DraftDtype = "",
    images: Annotated[int, typer.Option(help="Images per setting, labels in turn.")] = 200,
    batch: Annotated[int, typer.Option(help="Images per batch.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of all images.")] = 0,
    cfg: options.Cfg = 1.5,
    policies: Annotated[str, typer.Option(help="Policies at every draft_len, by commas.")] = ",".join(EVERY_LENGTH),
    once: Annotated[str, typer.Option(help="Policies at draft_len 5 alone, by commas.")] = ",".join(ONE_LENGTH),
    draft_len: Annotated[str, typer.Option(help="Draft lengths, by commas.")] = "1,2,3,5,10",
    into: Annotated[Path | None, typer.Option(help="Markdown file: replace its table between the markers.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the chart to this SVG file.")] = None,
    workers: options.Workers = 0,
    cluster: options.Cluster = "",
    json: Annotated[Path | None, typer.Option(help="Write every count and distance to this file.")] = None,
) -> None:
    """Measure target calls, target rows and distances of the acceptance policies."""
    networks = options.Networks(models, draft, target, vae, patch_nums, draft_noise)
    mode = options.Mode(device, tf32, dtype, draft_dtype)
    outputs = check_outputs({"into": into, "picture": picture, "json": json}, networks.files())
    options.check_drawing(picture)
    if into is not None:
        replaced_parts(into, {"table": ""})
    _check_counts(images, batch)
    settings = settings_for(policies, once, draft_len)
    pair = options.load_models(networks, mode)
    pair.check_finite()
    requests = list(batches(images, batch, pair.target.config.classes, seed, cfg))
    with LongWork("batches", len(requests)) as work:
        rows = measure(pair, requests, settings, work.advance, Execution(workers, cluster, device))
    table = markdown(rows)
    show_policies(rows, plain_console())
    if "json" in outputs:
        write_whole(outputs["json"], policies_document(pair.title, str(pair.device), rows))
    if "picture" in outputs:
        from harness.bench.charts import policies as chart  # noqa: PLC0415  # matplotlib is asked for where one draws
        from harness.bench.charts import svg  # noqa: PLC0415

        write_whole(outputs["picture"], svg(chart(rows)))
    if "into" in outputs:
        title = f"{count_of(images, 'image')}, cfg {cfg:g}, {pair.title} on {pair.device.type}, {dtype}"
        write_whole(outputs["into"], replaced_parts(outputs["into"], {"table": f"{title}\n\n{table}"}).encode())


def _check_counts(images: int, batch: int) -> None:
    if min(images, batch) < 1:
        raise InputError("images", images, "and batch must be at least 1", "pass --images 200 --batch 10")
    check_most("images", images, "200")


def settings_for(policies: str, once: str, draft_len: str) -> list[tuple[str, str]]:
    """Return (policy, draft_len) pairs: the product of two lists, and the policies `once`. Raises `InputError`."""
    lengths = [text for text in draft_len.split(",") if text]
    pairs = [(policy, text) for policy in policies.split(",") if policy for text in lengths]
    pairs += [(policy, "5") for policy in once.split(",") if policy]
    if not pairs:
        raise InputError("policies", policies, "names nothing", "pass --policies coupled")
    return pairs
