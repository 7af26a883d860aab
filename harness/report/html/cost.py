"""What a decoder costs and gives: time and memory of either side, distances where tokens are not claimed."""

from __future__ import annotations

from harness.report.html.overview import MOST_ROWS, gap
from harness.report.html.page import Drawing, Sheet, Words, size
from harness.report.html.plots import Axis, Series, plot
from harness.report.html.scales import named
from harness.runs.result import Verification

MOST_DOTS = 16


def times(result: Verification) -> list[object]:
    """Return seconds and memory by setting."""
    rows = []
    for setting in result.settings[:MOST_ROWS]:
        images = sum(row.judgement.images for row in setting.rows if not row.refused)
        if not images:
            continue
        ours, theirs = setting.seconds, setting.reference_seconds
        held = [row.counts.cache_bytes for row in setting.rows if row.counts]
        rows.append(
            (named(setting), f"{ours:.2f} s", f"{theirs:.2f} s", f"{1000 * ours / images:.1f} ms",
             f"{1000 * theirs / images:.1f} ms", f"{theirs / ours:.2f}" if ours and theirs else "–",
             size(max((sum(of.values()) for of in held), default=0)),
             size(max(row.peak_bytes for row in setting.rows)), size(max(row.host_bytes for row in setting.rows)),
             size(max(row.device_bytes for row in setting.rows)))
        )  # fmt: skip
    other = result.against or "reference"
    head = ("setting", "decoder", other, "decoder, an image", f"{other}, an image", "times as fast", "its caches",
            "its peak", "judge's process", "GPU")  # fmt: skip
    lead = (
        f"Decodes took {result.decode_seconds:.1f} s in all, summed over workers. Judging runs beside them, and other "
        "work may have slowed them down: sdvar-harness bench measures speed."
    )
    made: list[object] = [Words(lead)]
    if rows:
        made.append(Sheet("Time and memory by setting", head, rows))
    return made


def distances(result: Verification) -> list[object]:
    """Return how far images are from sequential ones, and what that buys; empty where tokens are claimed."""
    measured = [setting for setting in result.settings if setting.distances]
    if not measured:
        return []
    rows: list[tuple[str, ...]] = []
    series: list[Series] = []
    for setting in measured[:MOST_ROWS]:
        cells = []
        for name in ("tokens", "f_hat", "pixels"):
            values = gap([getattr(distance, name) for distance in setting.distances])
            cells += [f"{100 * v:.3g} %" if name == "tokens" else f"{v:.3g}" for v in values]
        calls = setting.target_calls
        mean = sum(calls) / len(calls) if calls else float("nan")
        rows.append((named(setting), f"{mean:.2f}" if calls else "–", *cells))
        if calls and len(series) < MOST_DOTS:
            far = gap([distance.pixels for distance in setting.distances])[0]
            series.append(Series(named(setting), [mean], [far], line=False))
    statistics = ("mean", "median", "worst")
    head = (
        "setting",
        "target calls",
        *(f"{name}, {s}" for name in ("tokens", "Δf_hat", "Δpixel") for s in statistics),
    )
    sheet = Sheet("Distance from sequential decoding of the same seed", head, rows)
    if not series:
        return [sheet]
    caption = "What the loss buys: target calls (fewer is faster) against mean pixel distance (less is closer)."
    x, y = Axis("mean target calls an image", low=0), Axis("mean |pixel difference|", low=0)
    svg = plot(series, x, y, salt="trade")
    return [Drawing(svg, f"Scatter plot: {caption} The numbers are in the table.", caption), sheet]
