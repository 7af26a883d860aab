"""Plots as SVG that takes its colours from the page, so that light and dark both read well.

Promise: no script, no link, no identifier that two plots of a page share; matplotlib, which not everybody has, is
imported where one is drawn.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.html._page import printable

# Colours that nothing else uses stand for variables of style.css.
INK, SOFT, RULE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0400{k:02x}" for k in range(8))
VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", **{colour: f"c{k}" for k, colour in enumerate(SERIES)}}
MARKERS = "os^Dv*Px"
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {  # matplotlib's type of a key lists them all
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5, "text.color": INK, "text.parse_math": False,
    "axes.edgecolor": SOFT, "axes.labelcolor": INK, "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": RULE, "legend.frameon": False,
    "figure.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One line or cloud of points of a plot; `line` False draws the points alone."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    line: bool = True


@dataclass(frozen=True)
class Axis:
    """How one axis is named and scaled; `low` None leaves its begin to the data."""

    name: str
    log: bool = False  # of the vertical one
    low: float | None = None
    ticks: Sequence[float] | None = None


def plot(series: Sequence[Series], x: Axis, y: Axis, level: tuple[float, str] | None = None, salt: str = "plot") -> str:
    """Return a plot of a few series, each with a colour, a marker and a dash of its own, which repeat after the eighth.

    `level` is a horizontal line at a height, with its name; `salt` another word for every plot of a page.
    """
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure((5.0, 3.3), layout="constrained")
        axes = figure.add_subplot(xlabel=x.name, ylabel=y.name)
        for k, one in enumerate(series):
            dash = DASHES[(k // 4) % 4] if one.line else "none"
            colour, marker = SERIES[k % 8], MARKERS[k % 8]
            axes.plot(one.x, one.y, color=colour, marker=marker, markersize=5, linestyle=dash,
                      label=_label(one.name), clip_on=False)  # fmt: skip
        if level is not None:
            axes.axhline(level[0], color=INK, linestyle="--", linewidth=1, label=_label(level[1]))
        if y.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # no mathematics: a label is a text
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        if x.ticks is not None:
            axes.set_xticks(list(x.ticks))
            axes.set_xlim(min(x.ticks) - 0.5, max(x.ticks) + 0.5)
        if x.low is not None:
            axes.set_xlim(x.low, axes.get_xlim()[1] * 1.08)  # room for the last point's marker
        if y.low is not None:
            axes.set_ylim(y.low, axes.get_ylim()[1] * 1.08)
        if len(series) + (level is not None) > 1:
            figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        stream, none = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=none, transparent=True)
    return _markup(stream.getvalue(), salt)


def _label(text: str) -> str:
    """Return a label that matplotlib shows: one that begins with _ is hidden."""
    return str(printable(text)).lstrip("_")


def _markup(text: str, salt: str) -> str:
    """Return SVG drawn in the colours above as markup for a page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:xlink:href=\"|url\()#([^\")]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda match: f' id="{salt}-{match[1]}"' if match[1] in used else "", text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{salt}-", text)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
