"""What a page shows of one image: pictures of both sides and their difference, and token maps, scale by scale.

Promise: as many pictures as fit into a stated number of bytes; the difference is that of the pictures as they were
kept, whatever they are compressed to here; every state of a token has its sign; what cannot be shown is left out, never
guessed: a file may hold anything where an image should be.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops
from torch import Tensor

from harness.protocol.pyramid import ScalePyramid
from harness.report.html._page import MARKS, Fold, counted, share
from harness.runs.pictures import AGREES, TIE, UNCLAIMED, WRONG, Picture, as_png, pngs

MOST_BYTES = 1_800_000  # of all pictures of a page, as they stand in it
FIRST = 4  # that are shown at once
SMALL = 24_000  # bytes; a larger PNG becomes WebP
WORST = (AGREES, UNCLAIMED, TIE, WRONG)  # last
PIXELS = (9, 24)  # of a cell: at least, at most
Tensors = Mapping[str, Tensor]
Marker = tuple[float, float, float, float]  # left, top, width and height on an image, in per cent of its sides


@dataclass(frozen=True)
class Tile:
    """One image: its data, or none where `alt` says all that there is to see."""

    source: str
    alt: str
    caption: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class PicturePair:
    title: str
    text: str
    tiles: tuple[Tile, ...]
    marker: Marker | None = None


@dataclass(frozen=True)
class TokenMap:
    width: int
    height: int
    pixels: tuple[int, int]  # of both
    label: str
    caption: str
    layers: Sequence[tuple[str, Sequence[tuple[int, int]]]]  # of each state its name, and its cells: column, row


@dataclass(frozen=True)
class Maps:
    title: str
    legend: Sequence[tuple[str, str]]  # of each state its name, and what it means
    items: Sequence[TokenMap]


def gallery_parts(pairs: list[PicturePair], images: int, keeper: str = "the run file keeps") -> list[object]:
    """Return a gallery of so many `images`: some pairs, others folded, and how many more `keeper` has."""
    total, fit = 0, 0
    for pair in pairs:
        total += sum(len(tile.source) for tile in pair.tiles)
        if total > MOST_BYTES and fit:
            break
        fit += 1
    parts: list[object] = [pairs[: min(fit, FIRST)]] if fit else []
    if fit > FIRST:
        parts.append(Fold(counted(fit - FIRST, "more image"), [pairs[FIRST:fit]]))
    if images > fit:
        rest = f", and {keeper} {counted(len(pairs) - fit, 'more')}" if len(pairs) > fit else ""
        parts.append(f"{counted(images, 'image')} in all; {fit} are shown{rest}.")
    return parts


def picture_pair(picture: Picture, layout: ScalePyramid, setting: str, other: str = "reference") -> PicturePair:
    """Return what is shown of a picture that a run kept; `setting` and `other`, who made the other image, are words."""
    marks = picture.marks
    counts = [f"{marks.count(mark):,} {MARKS[mark][2]}" for mark in (WRONG, TIE, UNCLAIMED) if mark in marks]
    text = f"{setting}. Tokens: {'; '.join(counts) if counts else 'every token agrees'}, of {len(marks):,}."
    # the frame is around the first wrong token, a tie only where none is wrong
    places = [marks.index(mark) for mark in (WRONG, UNCLAIMED, TIE) if mark in marks]
    marker = None
    if places:
        marker, framed = _framed(layout, places[0])
        text += f" {framed}"
    if picture.distance is not None:
        text += f" Mean pixel difference {picture.distance.pixels:.3g} of 1."
    name = f"seed {picture.seed}, image {picture.image}, label {picture.label}"
    return PicturePair(name, text, _triple(picture.reference, picture.decoder, name, (other, "decoder")), marker)


def _framed(layout: ScalePyramid, draw: int) -> tuple[Marker, str]:
    """Return the frame around a draw's position, and where that is."""
    position, channel = layout.place(draw)
    si, y, x = place_of(layout, position)
    h, w = layout.sides[si]
    at = f"position {position}{f', channel {channel}' if channel >= 0 else ''}"
    text = f"Framed: scale {si}, {at} (row {y}, column {x} of {h} × {w})."
    return (100 * x / w, 100 * y / h, 100 / w, 100 / h), text


def place_of(layout: ScalePyramid, position: int) -> tuple[int, int, int]:
    """Return scale, row and column of a position."""
    si = layout.level_of(position)
    return si, *divmod(position - layout.begin(si), layout.sides[si][1])


def _triple(before: bytes, after: bytes, name: str, sides: tuple[str, str]) -> tuple[Tile, ...]:
    """Return two images (PNG), called `sides`, and their difference."""
    one, other = (Image.open(io.BytesIO(png)).convert("RGB") for png in (before, after))
    return _tile(one, before, name, sides[0]), _tile(other, after, name, sides[1]), _difference(one, other, name)


def _tile(image: Image.Image, png: bytes, name: str, side: str) -> Tile:
    return Tile(_source(image, png), f"Image of the {side}, {name}", side, *image.size)


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
    text = f"{share(moved, one.width * one.height)} of the pixels differ, the most by {most} of 255"
    return Tile(_source(scaled, as_png(scaled)), f"Difference, {name}: {text}", caption, *one.size)


def _source(image: Image.Image, png: bytes) -> str:
    """Return an image as a data address; a large one compressed with a loss that no eye sees."""
    kind, data = "png", png
    if len(png) > SMALL:
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=85)
        kind, data = "webp", stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def side_by_side(
    case: str, both: tuple[Tensors, Tensors], names: tuple[str, str], layout: ScalePyramid | None, alone: str
) -> list[PicturePair]:
    """Return a case's images, of `image` (B,3,H,W) and `tokens` (B,L) on both sides; `alone` says that one lacks it."""
    before, after = map(_pngs, both)
    pairs = []
    for row in range(max(len(before), len(after))):
        name = f"{case}, image {row}"
        if row < min(len(before), len(after)):
            marker, text = _first_change(both[0]["tokens"][row], both[1]["tokens"][row], layout)
            pairs.append(PicturePair(name, text, _triple(before[row], after[row], name, names), marker))
        else:
            side, png = (names[0], before[row]) if row < len(before) else (names[1], after[row])
            image = Image.open(io.BytesIO(png)).convert("RGB")
            pairs.append(PicturePair(name, alone, (_tile(image, png, name, side),)))
    return pairs


def _pngs(tensors: Tensors) -> list[bytes]:
    """Return the images of a case; none where a file that was changed by hand holds something else there."""
    image, tokens = tensors.get("image"), tensors.get("tokens")
    if image is None or tokens is None or image.dim() != 4 or image.shape[1] != 3 or not image.numel():
        return []
    return pngs(image) if len(tokens) == len(image) else []


def _first_change(old_L: Tensor, new_L: Tensor, layout: ScalePyramid | None) -> tuple[Marker | None, str]:
    """Return the frame around the first token that changes, and what there is to say."""
    if layout is None or old_L.shape != new_L.shape or len(new_L) != layout.draws.L:
        return None, "Its tokens have another form than before."
    changed = (old_L != new_L).nonzero().flatten().tolist()
    if not changed:
        return None, f"All {len(new_L):,} tokens stay."
    marker, framed = _framed(layout, changed[0])
    return marker, f"{len(changed):,} of {counted(len(new_L), 'token')} change. {framed}"


def token_maps(picture: Picture, layout: ScalePyramid, title: str) -> Maps:
    items = [_map(picture.marks[layout.draws.span(si)], si, layout) for si in layout]
    return Maps(title, [(name, word) for mark, (name, word, _) in MARKS.items() if mark in picture.marks], items)


def _map(marks: str, si: int, layout: ScalePyramid) -> TokenMap:
    (h, w), N = layout.sides[si], layout.channels
    # of a position's draws the worst
    cells = [max(marks[k : k + N], key=WORST.index) for k in range(0, len(marks), N)]
    layers, counts = [], []
    for mark, (name, _, word) in MARKS.items():
        places = [(k % w, k // w) for k, one in enumerate(cells) if one == mark]
        if mark != AGREES and places:
            layers.append((name, places))
            counts.append(f"{marks.count(mark)} {word}")
    text = ", ".join(counts) if counts else "all agree"
    each = "tokens" if N == 1 else f"positions of {N} tokens"
    label = f"Scale {si}, {h} by {w} {each}: {text}" if h * w > 1 else f"Scale {si}, {counted(N, 'token')}: {text}"
    pixels = max(PIXELS[0], min(PIXELS[1], 120 // max(h, w)))
    return TokenMap(w, h, (w * pixels, h * pixels), label, f"scale {si}: {text}", layers)
