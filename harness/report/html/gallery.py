"""Images side by side: reference, decoder and their difference, with the place where they part.

Promise: as many as fit into a stated number of bytes; the difference is that of the pictures as they were kept,
whatever they are compressed to here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image, ImageChops

from harness.report.html.page import Fold, Words, counted, share
from harness.report.html.words import MARKS
from harness.runs.pictures import TIE, UNCLAIMED, WRONG, Picture, as_png

MOST_BYTES = 1_800_000  # of all pictures of a page, as they stand in it
FIRST = 6  # that are shown at once
SMALL = 24_000  # bytes; a larger PNG becomes WebP


@dataclass(frozen=True)
class Tile:
    """One image: its data, or none where `alt` says all that there is to see."""

    source: str
    alt: str
    caption: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Marker:
    """A square on an image, in per cent of its side."""

    left: float
    top: float
    side: float


@dataclass(frozen=True)
class Shown:
    """One image of both sides."""

    title: str
    text: str
    tiles: tuple[Tile, ...]
    marker: Marker | None = None


@dataclass(frozen=True)
class Gallery:
    """Images, in order."""

    items: Sequence[Shown]
    kind: ClassVar[str] = "gallery"


def parts(shown: Sequence[Shown], of: int, kept: str = "the run file keeps") -> list[object]:
    """Return the parts of a gallery: the first ones, the others folded, and how many there are besides.

    Args:
        shown: worst first.
        of: images that there are in all.
        kept: who has those that are not shown.
    """
    total, fit = 0, 0
    for item in shown:
        total += sum(len(tile.source) for tile in item.tiles)
        if total > MOST_BYTES and fit:
            break
        fit += 1
    made: list[object] = [Gallery(shown[: min(fit, FIRST)])] if fit else []
    if fit > FIRST:
        made.append(Fold(counted(fit - FIRST, "more image"), [Gallery(shown[FIRST:fit])]))
    if of > fit:
        rest = f", and {kept} {counted(len(shown) - fit, 'more')}" if len(shown) > fit else ""
        made.append(Words(f"{counted(of, 'image')} in all; {fit} are shown{rest}."))
    return made


def shown(picture: Picture, sides: Sequence[int], setting: str, other: str = "reference") -> Shown:
    """Return what is shown of a picture that a run kept.

    Args:
        picture: of the run.
        sides: of the scales.
        setting: of the decoder, in words.
        other: who made the other image.
    """
    place = first(picture)
    counts = [
        f"{picture.marks.count(mark):,} {MARKS[mark][2]}" for mark in (WRONG, TIE, UNCLAIMED) if mark in picture.marks
    ]
    text = "; ".join(counts) if counts else "every token agrees"
    text = f"{setting}. Tokens: {text}, of {len(picture.marks):,}."
    marker = None
    if place is not None:
        si, y, x = at(sides, place)
        marker = Marker(100 * x / sides[si], 100 * y / sides[si], 100 / sides[si])
        text += f" Framed: scale {si}, position {place} (row {y}, column {x} of {sides[si]} × {sides[si]})."
    if picture.distance is not None:
        text += f" Mean pixel difference {picture.distance.pixels:.3g} of 1."
    name = f"seed {picture.seed}, image {picture.image}, label {picture.label}"
    return Shown(name, text, tiles(picture.reference, picture.decoder, name, (other, "decoder")), marker)


def first(picture: Picture) -> int | None:
    """Return the position of the first token that does not agree: a wrong one before a tie; None where all do."""
    found = (picture.marks.find(mark) for mark in (WRONG, UNCLAIMED, TIE))
    return next((position for position in found if position >= 0), None)


def at(sides: Sequence[int], position: int) -> tuple[int, int, int]:
    """Return scale, row and column of a position."""
    si = 0
    while position >= sides[si] ** 2:
        position -= sides[si] ** 2
        si += 1
    return si, position // sides[si], position % sides[si]


def tiles(before: bytes, after: bytes, name: str, sides: tuple[str, str]) -> tuple[Tile, ...]:
    """Return two images and their difference.

    Args:
        before: PNG.
        after: PNG.
        name: of the image, for alternative texts.
        sides: what the two are called.
    """
    one, other = (Image.open(io.BytesIO(png)).convert("RGB") for png in (before, after))
    made = [
        Tile(_source(image, png), f"Image of the {side}, {name}", side, *image.size)
        for image, png, side in ((one, before, sides[0]), (other, after, sides[1]))
    ]
    return (*made, _difference(one, other, name))


def alone(png: bytes, alt: str, caption: str) -> Tile:
    """Return one image."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return Tile(_source(image, png), alt, caption, *image.size)


def _difference(one: Image.Image, other: Image.Image, name: str) -> Tile:
    if one.size != other.size:
        return Tile("", f"no difference: one is {one.size}, the other {other.size} pixels", "difference")
    red, green, blue = ImageChops.difference(one, other).split()
    far = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    levels = [level for level, count in enumerate(far.histogram()) if count]
    most = levels[-1]
    if not most:
        return Tile("", "no pixel differs", "difference")
    moved = sum(far.histogram()[1:])
    scaled = far.point([min(255, level * 255 // most) for level in range(256)])
    caption = f"difference × {255 / most:.3g}" if most < 240 else "difference"
    told = f"{share(moved, one.width * one.height)} of the pixels differ, the most by {most} of 255"
    return Tile(_source(scaled, as_png(scaled)), f"Difference, {name}: {told}", caption, *one.size)


def _source(image: Image.Image, png: bytes) -> str:
    """Return an image as a data address; a large one compressed with a loss that no eye sees."""
    kind, data = "png", png
    if len(png) > SMALL:
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=85)
        kind, data = "webp", stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
