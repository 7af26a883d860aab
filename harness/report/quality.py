"""What `quality` measured, on the terminal: a table, what its figures mean, and a verdict a decoder."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from harness.quality.distances import LEVEL, MOST_IMAGES, Estimate
from harness.quality.loss import Quality, resolves, why
from harness.quality.measured import Measured
from harness.quality.rows import QualityRow
from harness.report.tables import Column, name_column, print_table
from harness.report.terminal import say
from harness.wording import count_of

COLOURS = {Quality.KEPT: "green", Quality.LOST: "bold red", Quality.INCONCLUSIVE: "yellow"}
COLUMNS = (
    name_column("decoder"), name_column("contract", spare=2), Column("draft len", spare=4), Column("target calls"),
    Column("FD to real data"), Column("loss"), Column("FD to the target's law", spare=1), Column("drift"),
    Column("KD to real data", spare=6), Column("KD to the target's law", spare=6), Column("class accuracy", spare=1),
    Column("precision", spare=5), Column("coverage", spare=5), Column("time (s)", spare=7),
)  # fmt: skip
HEADS = (
    "decoder", "contract", "target calls", "FD to real", "loss", "FD to the target's law", "drift", "class accuracy",
    "precision", "coverage", "verdict",
)  # fmt: skip


def show_quality(found: Measured, console: Console, quiet: bool = False) -> None:
    """Print a run; `quiet` leaves the verdict lines only."""
    if not quiet:
        N = found.rows[0].images
        title = f"{found.models} on {found.device}, cfg {found.cfg:g}, {count_of(N, 'image')} a decoder"
        print_table(console, title, COLUMNS, [_cells(row) for row in found.rows])
        for text in notes(found):
            say(console, text)
    for row in found.rows[1:]:
        if found.most is None and row.failed:
            say(console, f"{row.name}: no image ({row.failed})")
    for row, verdict in zip(found.rows[1:], found.verdicts, strict=False):
        say(console, f"{row.name}: {why(row, found.most or 0.0)}", verdict.value, COLOURS[verdict])


def notes(found: Measured) -> list[str]:
    """Return what a reader needs to know of the figures, a line each."""
    first, *others = found.rows
    level = f"{LEVEL:.0%} intervals, jackknife over {found.blocks} blocks of images; shares by Wilson's"
    made = [
        f"FD: Fréchet distance in {found.features}, {found.unit}; KD: kernel distance; {level}",
        "loss: how much farther from real data than sequential decoding under the same seeds (paired); "
        "drift: how much farther from the target's law, which other seeds show",
    ]
    if found.real:
        made.append(f"real data: {found.real}; the same for every row, so that its own error is not in a loss")
    biases = [f"{of.bias:+.3f} in FD to {word}" for word, of in (("real data", first.real),) if of is not None]
    biases += [f"{row.law.bias:+.3f} in FD to the target's law" for row in others[:1] if row.law is not None]
    if biases:
        made.append(f"bias at N = {first.images}, which is taken out: {', '.join(biases)}")
    losses = [of for row in others for of in row.losses if not row.failed]
    if found.most is not None and losses:
        need = resolves([max(losses, key=lambda of: of.half)], first.images, found.most)
        many = f"about {need}" if need < MOST_IMAGES else "no feasible number of"
        made.append(f"a loss of {found.most:g} is resolved for every row above by {many} images a decoder")
    made += [f"{row.name}: tokens, {row.tokens}" for row in others if row.tokens is not None]
    return made


def best_cfg_line(found: Measured) -> str:
    """Return one line on the guidance value at which sequential decoding comes nearest to real data."""
    rows = [row for row in found.rows if ", cfg " in row.name and row.real is not None]
    if not rows:
        return "no guidance value was compared with real data"
    best, *others = sorted(rows, key=lambda row: row.real.value if row.real else 0.0)
    near = [row.name.partition("cfg ")[2] for row in others if row.real and best.real and row.real.low < best.real.high]
    beside = f"; cfg {', '.join(near)} within the intervals" if near else ""
    return f"best for the target: cfg {best.name.partition('cfg ')[2]}, FD to real data {best.real}{beside}"


def quality_markdown(found: Measured) -> str:
    """Return the rows as a Markdown table."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * 2}{'---:|' * (len(HEADS) - 3)}---|"]
    verdicts = ["-", *(verdict.value for verdict in found.verdicts)] if found.verdicts else ["-"] * len(found.rows)
    for row, verdict in zip(found.rows, verdicts, strict=True):
        cells = [f"`{row.name}`", row.contract or "-", _number(row.calls)]
        cells += [_estimate(of) for of in (row.real, row.loss, row.law, row.drift, row.accuracy, row.precision)]
        lines.append(f"| {' | '.join([*cells, _estimate(row.coverage), verdict])} |")
    title = (
        f"{count_of(found.rows[0].images, 'image')}, cfg {found.cfg:g}, {found.models} on {found.device.split(':')[0]}"
    )
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def _cells(row: QualityRow) -> list[str]:
    figures: Sequence[Estimate | None] = (
        row.real, row.loss, row.law, row.drift, row.real_kernel, row.law_kernel, row.accuracy, row.precision,
        row.coverage,
    )  # fmt: skip
    shown = [_estimate(of) for of in figures]
    return [row.name, row.contract or "-", row.draft_len or "-", _number(row.calls), *shown, f"{row.seconds:.1f}"]


def _estimate(of: Estimate | None) -> str:
    return "-" if of is None else str(of)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
