"""What `quality` measured, on the terminal: a table, what its figures mean, and a verdict a decoder."""

from rich.console import Console

from harness.quality import (
    LEVEL,
    MOST_IMAGES,
    Estimate,
    Measured,
    Quality,
    QualityRow,
    images_to_resolve,
    nats_text,
)
from harness.report._tables import TABLES, columns_of, print_table
from harness.report._terminal import say
from harness.wording import count_of, number

COLOURS = {Quality.KEPT: "green", Quality.LOST: "bold red", Quality.INCONCLUSIVE: "yellow"}
WORDS = TABLES["quality"]


def show_quality(run: Measured, console: Console, quiet: bool = False) -> None:
    """Print a run; `quiet` leaves the verdict lines only."""
    if not quiet:
        images = count_of(run.rows[0].images, "image")
        title = f"{run.models} on {run.device}, cfg {run.cfg:g}, {images} a decoder"
        print_table(console, title, columns_of("quality"), [_cells(row) for row in run.rows])
        for text in _notes(run):
            say(console, text)
    for row in run.rows[1:]:
        if run.most is None and row.failed:
            say(console, f"{row.name}: no image ({row.failed})")
    for row, verdict in zip(run.rows[1:], run.verdicts, strict=False):
        say(console, f"{row.name}: {run.why(row)}", verdict.value, COLOURS[verdict])


def _notes(run: Measured) -> list[str]:
    """Return what a reader needs to know of the figures, a line each."""
    first, *others = run.rows
    level = f"{LEVEL:.0%} intervals, jackknife over {run.blocks} blocks of images; shares by Wilson's"
    lines = []
    if run.unit:
        lines.append(f"FD: Fréchet distance in {run.features}, {run.unit}; KD: kernel distance; {level}")
        lines.append(WORDS["loss"])
    if any(row.nats for row in others):
        lines.append(WORDS["nats"])
    if run.real:
        lines.append(f"real data: {run.real}; the same for every row, so that its own error is not in a loss")
    biases = [f"{first.real.bias:+.3f} in FD to real data"] if first.real is not None else []
    biases += [f"{row.law.bias:+.3f} in FD to the target's law" for row in others[:1] if row.law is not None]
    if biases:
        lines.append(f"bias at N = {first.images}, which is taken out: {', '.join(biases)}")
    losses = [loss for row in others for loss in row.losses if not row.failed]
    if run.most is not None and losses:
        need = images_to_resolve([max(losses, key=lambda loss: loss.half)], first.images, run.most)
        many = f"about {need}" if need < MOST_IMAGES else "no feasible number of"
        lines.append(f"a loss of {run.most:g} is resolved for every row above by {many} images a decoder")
    return lines


def _cells(row: QualityRow) -> list[str]:
    losses = (row.real, row.loss, row.law, row.drift)
    figures = (row.real_kernel, row.law_kernel, row.accuracy, row.precision, row.coverage)
    words = [row.name, row.contract or "-", row.draft_len or "-", number(row.calls, ".1f")]
    return [*words, *map(_estimate, losses), nats_text(row.nats), *map(_estimate, figures), f"{row.seconds:.1f}"]


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)
