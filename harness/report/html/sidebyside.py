"""The images of a recorded case, as they were and as they are made today, the first token that changes framed.

Promise: what cannot be shown is left out, never guessed: a file may hold anything where an image should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from harness.report.html import gallery
from harness.report.html.gallery import Marker, Shown
from harness.report.html.page import counted
from harness.runs.pictures import pngs

Tensors = Mapping[str, Tensor]


def side_by_side(
    case: str, both: tuple[Tensors, Tensors], names: tuple[str, str], sides: Sequence[int], alone: str
) -> list[Shown]:
    """Return every image of one case.

    Args:
        case: its id.
        both: its `image` (B, 3, H, W) and `tokens` (B, L), before and after; either may lack them.
        names: what the two are called.
        sides: of the scales; none where they are not known.
        alone: what is said of an image that one of the two lacks.
    """
    before, after = map(_pngs, both)
    made = []
    for row in range(max(len(before), len(after))):
        name = f"{case}, image {row}"
        if row < min(len(before), len(after)):
            marker, said = _marker(both[0]["tokens"][row], both[1]["tokens"][row], sides)
            made.append(Shown(name, said, gallery.tiles(before[row], after[row], name, names), marker))
        else:
            side, png = (names[0], before[row]) if row < len(before) else (names[1], after[row])
            made.append(Shown(name, alone, (gallery.alone(png, f"Image of the {side}, {name}", side),)))
    return made


def _pngs(tensors: Tensors) -> list[bytes]:
    """Return the images of a case; none where a file that was changed by hand holds something else there."""
    image, tokens = tensors.get("image"), tensors.get("tokens")
    if image is None or tokens is None or image.dim() != 4 or image.shape[1] != 3 or not image.numel():
        return []
    return pngs(image) if len(tokens) == len(image) else []


def _marker(old_L: Tensor, new_L: Tensor, sides: Sequence[int]) -> tuple[Marker | None, str]:
    """Return the frame around the first token that changes, and what there is to say."""
    if old_L.shape != new_L.shape or sum(side * side for side in sides) != len(new_L):
        return None, "Its tokens have another form than before."
    found = (old_L != new_L).nonzero().flatten().tolist()
    if not found:
        return None, f"All {len(new_L):,} tokens stay."
    si, y, x = gallery.at(sides, found[0])
    text = (
        f"{len(found):,} of {counted(len(new_L), 'token')} change. Framed: scale {si}, position {found[0]} "
        f"(row {y}, column {x} of {sides[si]} × {sides[si]})."
    )
    return Marker(100 * x / sides[si], 100 * y / sides[si], 100 / sides[si]), text
