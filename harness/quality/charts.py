"""The picture of what `quality` measured, as SVG.

Promise: a function of the rows alone; the same rows give the same bytes under one version of matplotlib.
"""

import io

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from harness.quality._measured import Measured

SIZE = (9.0, 5.0)


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG without a date."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "sdvar-harness", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


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
