"""Table and picture of docs/quality.md, of what `quality --json` measured; scripts/scoreboard.py writes them."""

from matplotlib import colormaps
from matplotlib.figure import Figure

from harness.quality import Estimate, Measured, nats_text
from harness.wording import count_of, number
from scripts.pages import SIZE

HEADS = ("decoder", "contract", "target calls", "FD to real", "loss", "FD to the target's law", "drift", "nats",
         "class accuracy", "precision", "coverage", "verdict")  # fmt: skip


def quality_markdown(run: Measured) -> str:
    """Return the table, a row a decoder."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * 2}{'---:|' * (len(HEADS) - 3)}---|"]
    verdicts = ["-", *(verdict.value for verdict in run.verdicts)] if run.verdicts else ["-"] * len(run.rows)
    for row, verdict in zip(run.rows, verdicts, strict=True):
        losses, shares = (row.real, row.loss, row.law, row.drift), (row.accuracy, row.precision, row.coverage)
        cells = [f"`{row.name}`", row.contract or "-", number(row.calls, ".1f"), *map(_estimate, losses)]
        lines.append(f"| {' | '.join([*cells, nats_text(row.nats), *map(_estimate, shares), verdict])} |")
    images = count_of(run.rows[0].images, "image")
    return "\n".join([f"{images}, cfg {run.cfg:g}, {run.models} on {run.device.split(':')[0]}", "", *lines, ""])


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


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
