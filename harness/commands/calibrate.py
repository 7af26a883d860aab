"""`sdvar-harness calibrate`: measure how far rounding moves a network on this machine, and keep it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands import options
from harness.commands.listed import counts
from harness.files import check_outputs
from harness.report.progress import LongWork
from harness.report.terminal import plain_console, say
from harness.rounding.budget import load, save
from harness.rounding.measure import BATCHES, check_explained, measure
from harness.wording import count_of


def calibrate(
    models: options.Models = "digits",
    draft: options.Draft = None,
    target: options.Target = None,
    vae: options.Vae = None,
    patch_nums: options.PatchNums = "",
    device: options.Device = "cpu",
    tf32: options.Tf32 = False,
    dtype: options.Dtype = "float32",
    draft_dtype: options.DraftDtype = "",
    compile: options.Compile = False,
    batches: Annotated[str, typer.Option(help="Images per batch, a batch each.")] = ",".join(map(str, BATCHES)),
    into: Annotated[Path | None, typer.Option(help="File of budgets to add to; verify --budgets reads it.")] = None,
    reason: Annotated[str, typer.Option(help="Why a wider budget, or one of fewer images, may be kept.")] = "",
) -> None:
    """Measure the reference against float64 over every window of the pyramid, in one device, dtype and mode."""
    networks = options.Networks(models, draft, target, vae, patch_nums)
    mode = options.Mode(device, tf32, dtype, draft_dtype)
    outputs = check_outputs({"into": into}, networks.files())
    sizes = counts("batches", batches, "1,2,8")
    if "into" in outputs:
        load(outputs["into"])
    pair = options.load_models(networks, mode).compiled(compile)
    pair.check_finite()
    with LongWork("batches", len(sizes)) as work:
        entry = measure(pair, sizes, work.advance)
    check_explained(entry, pair)
    where = f"{entry.models} on {entry.device}, {entry.dtype}, products {entry.products}"
    console, windows = plain_console(), count_of(entry.windows, "window")
    say(console, f"{where}: {windows} of {count_of(entry.images, 'image')} against float64")
    say(console, f"logits {entry.rows:.3g} (rms {entry.rows_rms:.3g}) before guidance, f_hat {entry.f_hat:.3g}")
    if "into" in outputs:
        save(entry, outputs["into"], reason)
