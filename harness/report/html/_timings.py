"""The page of `bench`: what speculation buys against what is accepted."""

import math

from harness.bench import ANSWERS, Contest, Speed, SpeedRow
from harness.report import contest_cells, sequential_rows, speculative_rows
from harness.report.html._page import Drawing, Facts, Head, as_html, counted, number, origin, sections_of, sheet_of
from harness.report.html._plots import Axis, Series, plot


def timings_page(run: Speed, device: str) -> bytes:
    best = max(run.rows, key=lambda row: row.speed_up)
    gains = best.speed_up > 1
    text = f"At best {best.speed_up:.2f} times as fast as sequential decoding by the target, with {_named(best)}."
    if not gains:
        text = f"No setting is faster than sequential decoding; the best is {best.speed_up:.2f} times as fast."
    rows = zip(run.rows, speculative_rows(run.rows), strict=True)
    speculative = [[*cells[:3], number(row.kept, ".0%"), *cells[3:]] for row, cells in rows]  # with what was accepted
    tables = {"speculative": speculative, "sequential": sequential_rows(run.rows)}
    # a page's dash in place of a terminal's
    sheets = {
        name: [sheet_of(name, [["–" if cell == "-" else cell for cell in row] for row in rows])]
        for name, rows in tables.items()
    }
    sections = sections_of("timings", {}, result=[_facts(run, best)], speed=[_plot(run)], **sheets)
    sections.append(origin(f"{run.models} on {device}, {run.title}. {run.machine}."))
    word, tone = (f"{best.speed_up:.2f} TIMES AS FAST", "good") if gains else ("NOT FASTER", "open")
    return as_html(Head(f"{run.models} on {device}", word, tone, text), sections)


def contest_page(found: Contest, device: str) -> bytes:
    """Return the page of a decoder beside sequential decoding."""
    answers = found.answers
    word = min((each.partition(":")[0] for each in answers), key=ANSWERS.index)  # of all batch sizes the worst
    best = [found.best(row.batch) for row in found.rows if not row.is_sequential]
    facts = Facts([
        ("the decoder", found.verdict, f"{found.decoder}, {found.setting}"),
        *((f"best sequential, {counted(row.batch, 'image')}", f"{row.times.median:.1f} ms", row.side) for row in best),
    ])  # fmt: skip
    sections = sections_of("contest", {}, result=[facts], sides=[sheet_of("contest", contest_cells(found))])
    sections.append(origin(f"{found.models} on {device}, {found.mode}. {found.machine}. {' '.join(found.remarks)}"))
    tone = "good" if word == ANSWERS[-1] else "open"
    return as_html(Head(f"{found.models} on {device}", word, tone, "; ".join(answers)), sections)


def _named(row: SpeedRow) -> str:
    drafted = f", {counted(row.draft_len, 'drafted scale')}" if row.speculates else ""
    return f"{row.policy}{drafted}, {counted(row.batch, 'image')} a batch"


def _facts(run: Speed, best: SpeedRow) -> Facts:
    return Facts([
        ("best speed-up", f"{best.speed_up:.2f}", _named(best)),
        ("its target calls", f"{best.target_calls:.2f}", "mean an image"),
        ("its scales accepted", number(best.kept, ".0%"), "of those judged"),
        ("its extra memory", number(best.extra_memory, ".1%"), "beyond the target alone"),
        ("settings timed", f"{len(run.rows):,}", run.title),
    ])  # fmt: skip


def _plot(run: Speed) -> Drawing:
    series = []
    judged = [row for row in run.rows if not math.isnan(row.kept)]
    for batch, length in dict.fromkeys((row.batch, row.draft_len) for row in judged):
        points = sorted((r.kept, r.speed_up) for r in judged if (r.batch, r.draft_len) == (batch, length))
        name = f"{counted(length, 'scale')}, {counted(batch, 'image')}"
        series.append(Series(name, [100 * x for x, _ in points], [y for _, y in points]))
    caption = "Above the dashed line speculation gains; right of it more drafted scales are accepted."
    x, y = Axis("judged scales that were accepted, %", low=0), Axis("speed-up", low=0)
    return Drawing("Line plot", plot(series, x, y, (1.0, "sequential"), "speed"), caption)
