"""The pictures of measurements, as SVG.

Promise: a function of the rows alone; the same rows give the same bytes under one version of matplotlib.
"""

import io
from collections.abc import Iterable, Sequence
from itertools import groupby

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from harness.bench._files import Speed
from harness.bench._policy_costs import PolicyRow
from harness.quality import Measured
from harness.speculative import IMPOSED

SIZE = (9.0, 5.0)


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG without a date."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "sdvar-harness", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def policies_chart(rows: Sequence[PolicyRow]) -> Figure:
    """Draw target calls against distance: a line a policy, a dot a draft length, dashes for rows without a contract."""
    figure = Figure(SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="mean target calls an image", ylabel="mean |pixel difference| from sequential")
    axes.set_prop_cycle(color=colormaps["tab20"](range(20)))  # there are more policies than default colours
    for name, group in groupby((row for row in rows if row.contract), _family):
        points = [(row.mean("target_calls"), row.mean("pixels")) for row in group]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, clip_on=False)
    for row in rows:
        if not row.contract:
            axes.axhline(row.mean("pixels"), color="gray", linestyle="--")
            axes.annotate(row.policy, (0, row.mean("pixels")), textcoords="offset points", xytext=(4, 4))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper")
    return figure


def trade_off_chart(measured: Measured) -> Figure:
    """Draw target calls against the published loss and against the drift: a dot a decoder, bars are intervals."""
    figure = Figure(SIZE, layout="constrained")
    words = {"loss": "loss: farther from real data", "drift": "drift: farther from the target's law"}
    for axes, (name, word) in zip(figure.subplots(1, 2, sharex=True), words.items(), strict=True):
        axes.set(xlabel="mean target calls an image", ylabel=f"{word}\n({measured.unit})")
        axes.set_yscale("symlog", linthresh=measured.most or 0.1)
        axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
        for row in measured.rows[1:]:
            loss = getattr(row, name)
            if loss is not None and row.calls is not None:
                label = row.name if name == "drift" else None
                ends = [[loss.value - loss.low], [loss.high - loss.value]]
                axes.errorbar([row.calls], [loss.value], ends, marker="o", markersize=4, label=label, clip_on=False)
        axes.axhline(measured.most or 0.0, color="gray", linestyle="--")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _family(row: PolicyRow) -> str:
    """Policies that differ by ENTRY share a line."""
    name, _, rest = row.policy.partition(":")
    return f"{name}:ENTRY" if name in ("handoff", "collaborative", "code") and rest else row.policy


def speed_up_chart(runs: Iterable[Speed]) -> Figure:
    """Draw the speed-up of one image against imposed acceptance: a line a mode and draft length."""
    figure = Figure(SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="share of drafted scales accepted", ylabel="speed-up over the sequential target")
    for run in runs:
        rows = sorted((r for r in run.rows if r.batch == 1 and r.policy.startswith(IMPOSED)), key=lambda r: r.draft_len)
        for length, group in groupby(rows, lambda row: row.draft_len):
            points = sorted((row.kept, row.speed_up) for row in group)
            label = f"{run.title}, {length} scales" + (" + bonus" if run.bonus else "")
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axes.axhline(1.0, color="gray", linestyle="--")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
