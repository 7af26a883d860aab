"""`sdvar-harness calibrate`: measure how far rounding moves a network on this machine, and keep it."""

from pathlib import Path
from typing import Annotated

from harness.commands import _options as options
from harness.commands._options import WRITTEN, Mode, Pair
from harness.commands.records import Group, Option, command
from harness.files import check_outputs
from harness.wording import count_of


class Calibration(Group, panel="What is measured"):
    """What is measured, and where it is kept."""

    compile: options.Compile = False
    batches: Annotated[str, Option("Images per batch, a batch each.")] = "1,2,8"
    into: Annotated[Path | None, Option("File of budgets to add to; verify --budgets reads it.", panel=WRITTEN)] = None
    reason: Annotated[str, Option("Why a wider budget, or one of fewer images, may be kept.", panel=WRITTEN)] = ""


@command
def calibrate(networks: Pair, mode: Mode, measurement: Calibration) -> None:
    """Measure how far rounding moves the reference from float64, in every window of scales, on a device in a dtype."""
    from harness.commands._inputs import counts, load_models
    from harness.report import LongWork, plain_console, say
    from harness.rounding import check_explained, load_budgets, measure_budget, save_budget

    outputs = check_outputs({"into": measurement.into}, options.files_of(networks))
    sizes = counts("batches", measurement.batches, "1,2,8")
    if "into" in outputs:
        load_budgets(outputs["into"])
    pair = load_models(networks, mode).compiled(measurement.compile)
    pair.check_finite()
    with LongWork("batches", len(sizes)) as work:
        entry = measure_budget(pair, sizes, work.advance)
    check_explained(entry, pair)
    subject = f"{entry.models} on {entry.device}, {entry.dtype}, products {entry.products}"
    console, windows = plain_console(), count_of(entry.windows, "window")
    say(console, f"{subject}: {windows} of {count_of(entry.images, 'image')} against float64")
    say(console, f"logits {entry.rows:.3g} (rms {entry.rows_rms:.3g}) before guidance, f_hat {entry.f_hat:.3g}")
    if "into" in outputs:
        save_budget(entry, outputs["into"], measurement.reason)
        say(console, f"wrote {outputs['into']}", whole=True)
