"""`sdvar-harness calibrate`: measure how far rounding moves a network on this machine, and keep it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.options import ModelOptions, flat_options, integers
from harness.errors import InputError
from harness.files import check_distinct, check_writable
from harness.rounding.measure import BATCHES, check_explained, measure
from harness.rounding.stored import load, save


@dataclass(frozen=True)
class CalibrateOptions:
    """How much to measure, and where it goes."""

    batches: Annotated[str, typer.Option(help="Images per batch, a batch each.")] = ",".join(map(str, BATCHES))
    into: Annotated[Path | None, typer.Option(help="File of budgets to add to; verify --budgets reads it.")] = None
    reason: Annotated[str, typer.Option(help="Why a wider budget, or one of fewer images, may be kept.")] = ""


@flat_options
def calibrate(model: ModelOptions, options: CalibrateOptions) -> None:
    """Measure the reference against float64 over every window of the pyramid, in one device, dtype and mode."""
    check_writable(options.into, "into")
    check_distinct({"into": options.into}, model.files())
    batches = integers("batches", options.batches, "1,2,8")
    if min(batches) < 1:
        raise InputError("batches", options.batches, "must all be at least 1", "pass --batches 1,2,8")
    if options.into is not None:
        load(options.into)
    models = model.load()
    models.check_finite()
    entry = measure(models, batches)
    check_explained(entry, models)
    if options.into is not None:
        save(entry, options.into, options.reason)
    mode = f"{entry.models} on {entry.device}, {entry.dtype}, products {entry.products}"
    print(f"{mode}: {entry.windows} windows of {entry.images} images against float64")
    print(f"logits {entry.rows:.3g} (rms {entry.rows_rms:.3g}) before guidance, f_hat {entry.f_hat:.3g}")
