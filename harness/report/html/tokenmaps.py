"""Token maps, scale by scale: which tokens agree, which are ties, which are wrong; every state has its sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.report.html.page import counted
from harness.report.html.words import MARKS
from harness.runs.pictures import AGREES, Picture

# Signs in a cell of side 1.
SIGNS = {
    "agree": "",
    "tie": "M{x}.25 {y}.5a.25.25 0 1 0 .5 0a.25.25 0 1 0-.5 0",
    "wrong": "M{x}.2 {y}.2l.6.6m0-.6l-.6.6",
    "unclaimed": "M{x}.2 {y}.8l.6-.6",
}
LEGEND = {"agree": "", "tie": "M2.5 5a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0", "wrong": "M2 2l6 6m0-6l-6 6",
          "unclaimed": "M2 8l6-6"}  # fmt: skip
PIXELS = (9, 24)  # of a cell: at least, at most


@dataclass(frozen=True)
class Sign:
    """One entry of the legend."""

    name: str
    word: str
    path: str


@dataclass(frozen=True)
class Layer:
    """The cells of one state as two paths."""

    name: str
    ground: str
    sign: str


@dataclass(frozen=True)
class TokenMap:
    """One scale of one image."""

    side: int
    pixels: int
    label: str
    caption: str
    layers: Sequence[Layer]
    grid: str


@dataclass(frozen=True)
class Maps:
    """All scales of one image."""

    title: str
    legend: Sequence[Sign]
    items: Sequence[TokenMap]
    kind: ClassVar[str] = "maps"


def maps(picture: Picture, sides: Sequence[int], title: str) -> Maps:
    """Return the maps of one image.

    Args:
        picture: its marks are what is drawn.
        sides: of the scales.
        title: above them.
    """
    begin, items = 0, []
    for si, side in enumerate(sides):
        items.append(_map(picture.marks[begin : begin + side * side], si, side))
        begin += side * side
    found = [mark for mark in MARKS if mark in picture.marks]
    legend = [Sign(MARKS[mark][0], MARKS[mark][1], LEGEND[MARKS[mark][0]]) for mark in found]
    return Maps(title, legend, items)


def _map(marks: str, si: int, side: int) -> TokenMap:
    layers, said = [], []
    for mark, (name, _, word) in MARKS.items():
        places = [(k % side, k // side) for k, one in enumerate(marks) if one == mark]
        if mark == AGREES or not places:
            continue
        ground = "".join(f"M{x} {y}h1v1h-1z" for x, y in places)
        layers.append(Layer(name, ground, "".join(SIGNS[name].format(x=x, y=y) for x, y in places)))
        said.append(f"{len(places)} {word}")
    grid = "".join(f"M{k} 0v{side}M0 {k}h{side}" for k in range(1, side))
    text = ", ".join(said) if said else "all agree"
    label = f"Scale {si}, {side} by {side} tokens: {text}" if side > 1 else f"Scale 0, {counted(1, 'token')}: {text}"
    pixels = side * max(PIXELS[0], min(PIXELS[1], 120 // side))
    return TokenMap(side, pixels, label, f"scale {si}: {text}", layers, grid)
