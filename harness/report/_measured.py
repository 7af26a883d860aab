"""Measurements on the terminal: timings of `bench`, bits of `exactness`, what `quality` found with its verdicts."""

from collections.abc import Sequence

from rich.console import Console

from harness.bench import Contest, Exactness, Speed, SpeedRow
from harness.quality import LEVEL, MOST_IMAGES, Estimate, Measured, Quality, QualityRow, images_to_resolve, nats_text
from harness.report._tables import TABLES, columns_of, print_table
from harness.report._terminal import say
from harness.wording import count_of, number

COLOURS = {Quality.KEPT: "green", Quality.LOST: "bold red", Quality.INCONCLUSIVE: "yellow"}
WORDS = TABLES["quality"]
MOST_WIDTHS = 4  # that a row names


def show_speed(run: Speed, device: str, console: Console) -> None:
    """Print one run; times are those of a batch."""
    title = f"{run.models} on {device}, {run.title}: sequential decoding"
    print_table(console, title, columns_of("sequential"), sequential_rows(run.rows))
    title = "speculative decoding" + (", bonus scale" if run.bonus else "")
    print_table(console, title, columns_of("speculative"), speculative_rows(run.rows))
    say(console, str(run.machine))


def show_contest(found: Contest, device: str, console: Console) -> None:
    """Print a decoder's times beside sequential decoding's, and whether it is faster than the best of them."""
    tested = f"{found.decoder}, {found.setting} ({found.verdict})"
    title = f"{found.models} on {device}, {found.mode}: {tested} beside sequential decoding"
    print_table(console, title, columns_of("contest"), contest_cells(found))
    say(console, str(found.machine))
    for text in found.remarks:
        say(console, f"remark: {text}")
    if any(row.floor_ms > row.times.median for row in found.rows):
        why = "the machine was busy when its rates were measured: neither floor nor share can be relied on"
        say(console, f"remark: a floor lies above its time, which cannot be; {why}")
    for text in found.answers:
        say(console, text)
    say(console, "what the columns mean, and what to change: docs/speed.md#your-own-decoder", "next:", whole=True)


def contest_cells(found: Contest) -> list[list[str]]:
    return [
        [row.side, f"{row.batch}", f"{row.times.median:.1f}", f"{row.times.least:.1f}-{row.times.most:.1f}",
         f"{found.best(row.batch).times.median / row.times.median:.2f}×", number(row.target_calls, ".2f"),
         number(row.passes_ms, ".1f"), number(row.floor_ms, ".1f"), number(row.floor_ms / row.times.median, ".0%"),
         f"{row.peak / 2**30:.2f} GiB" if row.peak else "-"]
        for row in found.rows
    ]  # fmt: skip


def show_exactness(found: Exactness, device: str, console: Console) -> None:
    """Print which widths of every operation agree, at which draft lengths all do, and the ties of those asked."""
    compiled = ", compiled" if found.compiled else ""
    title = f"{found.models} on {device}, {found.mode}{compiled}: passes of several scales beside one pass a scale"
    print_table(console, title, columns_of("exactness"), exactness_cells(found))
    lengths = ", ".join(map(str, found.exact_lengths)) or "none"
    of = f"of 1 to {found.scales}; a bonus scale counts as drafted"
    say(console, f"draft lengths at which contract A holds bit for bit ({of}): {lengths}")
    for length, ties in found.expected_ties.items():
        share = f"{ties / found.draws:.2g} of all draws"
        say(console, f"expected ties at draft length {length}: {ties:.2g} an image of {found.draws} draws, {share}")


def exactness_cells(found: Exactness) -> list[list[str]]:
    """Return a row an operation."""
    cells = []
    for operation in dict.fromkeys(row.operation for row in found.rows):
        rows = [row for row in found.rows if row.operation == operation]
        off = [str(row.width) for row in rows if row.differs]
        far = [max(getattr(row, name) for row in rows) for name in ("difference", "error", "rms")]
        more = f" and {len(off) - MOST_WIDTHS} more" if len(off) > MOST_WIDTHS else ""
        differing = "; ".join(off[:MOST_WIDTHS]) + more
        cells.append([operation, f"{len(rows)}", f"{len(rows) - len(off)}", *map(number, far), differing or "-"])
    return cells


def sequential_rows(rows: Sequence[SpeedRow]) -> list[list[str]]:
    """Return what sequential decoding takes, a row a batch size."""
    cells = []
    for batch, row in {row.batch: row for row in rows}.items():
        target, draft = row.target, row.draft
        times = (row.reference_ms, target.ms, target.passes_ms, target.floor_ms, draft.ms, draft.passes_ms)
        memory = f"{target.peak / 2**30:.2f} GiB" if target.peak else "-"
        cells.append([f"{batch}", *(number(ms, ".1f") for ms in times), memory])
    return cells


def speculative_rows(rows: Sequence[SpeedRow]) -> list[list[str]]:
    """Return what speculative decoding takes, a row a setting."""
    return [
        [row.policy, f"{row.batch}", f"{row.draft_len}" if row.speculates else "-",
         *(number(ms, ".1f") for ms in (row.ms, row.draft_passes_ms, row.target_passes_ms, row.floor_ms)),
         f"{row.target_calls:.2f}", f"{row.speed_up:.2f}×", number(row.allowed, ".2f", "×"),
         number(row.speed_up / row.allowed, ".0%"), number(row.extra_memory, ".1%")]
        for row in rows
    ]  # fmt: skip


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
