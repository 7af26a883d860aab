"""`sdvar-harness bench`: time speculative against sequential decoding."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from harness.bench.files import Speed
from harness.bench.floor import Machine
from harness.bench.speed import Bench, SpeedRow
from harness.commands import options
from harness.commands.listed import counts, integers
from harness.errors import InputError
from harness.files import check_outputs, write_whole
from harness.protocol.request import Request
from harness.report.html.page import check_page
from harness.report.progress import LongWork
from harness.report.speed import show_speed
from harness.report.terminal import plain_console
from harness.speculative.policies import parse


def bench(
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
    batches: Annotated[str, typer.Option(help="Images per batch: 1,8.")] = "1",
    seeds: Annotated[str, typer.Option(help="Seeds: 0,3 or the range 0:4; times are means over them.")] = "0",
    draft_len: Annotated[str, typer.Option(help="Scales proposed per round: 2,5,10.")] = "2,5,10",
    policies: Annotated[
        str, typer.Option(help="By commas; imposed:RATE keeps drafted scales at that rate, whatever they are.")
    ] = "imposed:1",
    bonus: Annotated[
        bool, typer.Option("--bonus", help="Let the target finish the scale behind the drafted ones too.")
    ] = False,
    graphs: options.Graphs = False,
    compile: options.Compile = False,
    repeats: Annotated[int, typer.Option(help="Timed decodes per figure; the median is shown.")] = 5,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
) -> None:
    """Time sequential and speculative decoding in one mode, and compare with what passes and machine allow."""
    networks = options.Networks(models, draft, target, vae, patch_nums, draft_noise)
    mode = options.Mode(device, tf32, dtype, draft_dtype)
    outputs = check_outputs({"json": json, "html": html}, networks.files())
    check_page(html)
    settings = settings_for(policies, draft_len, repeats)
    requests_for(batches, seeds, 1)  # refused before the networks are loaded
    pair = options.load_models(networks, mode)
    pair.check_finite()
    requests = requests_for(batches, seeds, pair.target.config.classes)
    machine = Machine.measure(pair.device, pair.target.dtype)
    if pair.device.type == "cuda":
        torch.cuda.empty_cache()
    measured = Bench(pair, graphs, repeats, machine, bonus, compile)
    rows: list[SpeedRow] = []
    with LongWork("timings", len(requests) * len(settings), quiet) as work:
        for same_size in requests:
            for row in measured.rows(same_size, settings):
                rows.append(row)
                work.advance()
    draft_name = str(pair.draft.dtype).removeprefix("torch.")
    run = Speed(pair.title, "TF32" if tf32 else dtype, draft_name, graphs, bonus, machine, rows, compile)
    show_speed(run, str(pair.device), plain_console())
    if "json" in outputs:
        write_whole(outputs["json"], run.document())
    if "html" in outputs:
        from harness.report.html.timings import timings_page  # noqa: PLC0415  # Jinja2 only where a page is made

        write_whole(outputs["html"], timings_page(run, str(pair.device)))


def settings_for(policies: str, draft_len: str, repeats: int) -> list[tuple[str, int]]:
    """Return (policy, draft_len) pairs; of a policy that no draft length touches one, with the first.

    Raises:
        InputError: an unknown policy, or fewer than one repeat.
    """
    if repeats < 1:
        raise InputError("repeats", repeats, "must be at least 1", "pass --repeats 5")
    named = [parse(text, bench=True) for text in policies.split(",")]
    lengths = integers("draft_len", draft_len, "2,5")
    return [(policy.name, n) for n in lengths for policy in named if policy.speculates or n == lengths[0]]


def requests_for(batches: str, seeds: str, classes: int) -> list[list[Request]]:
    """Return a request a seed for every batch size. Raises `InputError` for a size below 1, or no seed."""
    sizes = counts("batches", batches, "1,8")
    numbers = integers("seeds", seeds, "0:4")
    return [[_request(seed, size, classes) for seed in numbers] for size in sizes]


def _request(seed: int, size: int, classes: int) -> Request:
    """Return a batch of its own labels and image addresses, so that imposed coins differ from seed to seed."""
    images = tuple(range(seed * size, (seed + 1) * size))
    return Request(tuple(image % classes for image in images), seed, images=images)
