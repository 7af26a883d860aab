"""A picture of `bench.policies`: target calls against the distance from the sequential image, as an SVG file.

Promise: a function of the rows alone; one line a policy, one dot a draft length, dashes for the yardsticks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from harness.bench.policies import Row

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 860, 460, 64, 24, 56, 210
COLOURS = (
    "#1b6ca8", "#c0392b", "#218c53", "#8e44ad", "#d68910", "#117a8b", "#7f5539", "#b83280", "#4a4e69", "#5d8a00",
    "#00a0c6", "#ff7f50",
)  # fmt: skip

Scale = Callable[[float], float]


def picture(rows: Sequence[Row]) -> str:
    """Return the chart of rows with a contract over those without one (the yardsticks)."""
    drawn = [row for row in rows if row.contract]
    marks = [row for row in rows if not row.contract]
    most_calls = max(row.mean("target_calls") for row in drawn)
    most_pixels = 1.1 * max(row.mean("pixels") for row in rows) or 1.0

    def x(calls: float) -> float:
        return LEFT + calls / most_calls * (WIDTH - LEFT - LEGEND - 20)

    def y(pixels: float) -> float:
        return HEIGHT - BOTTOM - pixels / most_pixels * (HEIGHT - TOP - BOTTOM)

    shapes = _axes(x, y, most_calls, most_pixels)
    for row in marks:
        at = y(row.mean("pixels"))
        shapes.append(f'<line x1="{LEFT}" x2="{x(most_calls):.1f}" y1="{at:.1f}" y2="{at:.1f}" class="mark"/>')
        shapes.append(f'<text x="{x(most_calls) + 8:.1f}" y="{at + 4:.1f}">{escape(row.policy)}</text>')
    families = [(name, list(group)) for name, group in groupby(drawn, _family)]
    for k, (name, group) in enumerate(families):
        colour = COLOURS[k % len(COLOURS)]
        points = [(x(row.mean("target_calls")), y(row.mean("pixels"))) for row in group]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for row, (a, b) in zip(group, points, strict=True):
            said = f"{row.policy} draft_len {row.draft_len}: {row.mean('target_calls'):.2f} calls"
            shapes.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"><title>{said}</title></circle>')
        level = HEIGHT - BOTTOM - 20 * (len(families) - k)
        shapes.append(f'<circle cx="{WIDTH - LEGEND + 30}" cy="{level - 4}" r="4" fill="{colour}"/>')
        shapes.append(f'<text x="{WIDTH - LEGEND + 42}" y="{level}">{escape(name)}</text>')
    style = "text{font:13px sans-serif;fill:#222}.mark{stroke:#666;stroke-dasharray:5 4}.axis{stroke:#222}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    body = "\n".join([f"<style>{style}</style>", f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *shapes])
    return f"{head}\n{body}\n</svg>\n"


def _family(row: Row) -> str:
    """Policies that differ by ENTRY share a line."""
    name, _, rest = row.policy.partition(":")
    return f"{name}:ENTRY" if name in ("handoff", "collaborative") and rest else row.policy


def _axes(x: Scale, y: Scale, most_calls: float, most_pixels: float) -> list[str]:
    bottom, right = y(0), x(most_calls)
    shapes = [
        f'<line x1="{LEFT}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}" class="axis"/>',
        f'<line x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{bottom}" class="axis"/>',
        f'<text x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 14}" text-anchor="middle">mean target calls an image</text>',
        f'<text x="18" y="{(TOP + bottom) / 2:.1f}" text-anchor="middle" transform="rotate(-90 18 '
        f'{(TOP + bottom) / 2:.1f})">mean |pixel difference| from the sequential image</text>',
    ]
    for calls in range(0, int(most_calls) + 1, 2):
        shapes.append(f'<text x="{x(calls):.1f}" y="{bottom + 18}" text-anchor="middle">{calls}</text>')
    for k in range(0, int(most_pixels * 100) + 1, 2):
        shapes.append(f'<text x="{LEFT - 8}" y="{y(k / 100) + 4:.1f}" text-anchor="end">{k / 100:.2f}</text>')
    return shapes
