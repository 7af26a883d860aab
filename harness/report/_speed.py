"""Timings of `bench` on the terminal: sequential decoding, speculative decoding, the machine."""

from collections.abc import Sequence

from rich.console import Console

from harness.bench import Contest, Speed, SpeedRow
from harness.report._tables import columns_of, print_table
from harness.report._terminal import say
from harness.wording import number


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
