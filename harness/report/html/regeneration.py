"""The page of `golden diff`: what a regeneration would change, with the images before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from harness.golden.diff import FILE, Change
from harness.golden.networks import networks
from harness.golden.record import Fresh
from harness.golden.store import Recording, read
from harness.report.html import gallery
from harness.report.html.gallery import Marker, Shown
from harness.report.html.origin import here
from harness.report.html.page import Facts, Page, Section, Sheet, Words, as_html, counted
from harness.runs.pictures import pngs

SIDES = "recording", "code of today"
MEANS = {
    "added": "planned, and not on disk",
    "removed": "on disk, and no longer planned",
    "settings": "planned with other settings",
    "form": "other tensors, shapes or dtypes",
    "values": "what is on disk no longer holds against this code",
    "weights": "recorded with other weights",
    "changed by hand": "the file is not what was written: its digest does not fit",
}


def regeneration_page(made: Sequence[Fresh], device: str) -> bytes:
    """Return the page of a comparison as one HTML file.

    Args:
        made: every file of the plan; what is on disk is read again.
        device: where this code ran.
    """
    count = sum(len(after.changes) for after in made)
    word, tone = ("CHANGED", "open") if count else ("UNCHANGED", "good")
    text = (
        "This code no longer gives what is recorded. If the change is meant, golden record writes it, with a reason."
        if count else "Everything that is recorded holds against this code, rounding apart: nothing would be written."
    )  # fmt: skip
    shown = [item for after in made for item in _images(after)]
    sections = [
        Section("result", "Result", "", [_facts(made)]),
        Section("changes", "What would change", "A change is what no longer holds; rounding is none.", _changes(made)),
        Section("images", "Images before and after",
                "As recorded, as this code makes it, and the difference. A frame marks the first token that changes.",
                gallery.parts(shown, len(shown), "the files hold") if shown else []),
        Section("provenance", "Provenance", "", [Words(f"On {device}."), *here()]),
    ]  # fmt: skip
    return as_html(Page("goldens", word, tone, text, [section for section in sections if section.parts]))


def _facts(made: Sequence[Fresh]) -> Facts:
    changed = [change for after in made for change in after.changes]
    return Facts(
        [
            ("cases on record", f"{sum(len(after.cases) for after in made):,}", f"in {counted(len(made), 'file')}"),
            ("would change", f"{len({c.id for c in changed if c.id != FILE}):,}", "cases"),
            ("tokens that change", f"{sum(change.tokens for change in changed):,}", "in those cases"),
        ]
    )


def _changes(made: Sequence[Fresh]) -> list[object]:
    sheets: list[object] = []
    for after in made:
        rows = [
            (change.id, change.what, MEANS.get(change.what, ""), str(change.first_scale) if change.tokens else "–",
             f"{change.tokens:,}", _number(change.f_hat), _number(change.image))
            for change in after.changes
        ]  # fmt: skip
        head = ("case", "change", "which means", "first scale", "tokens", "largest Δf_hat", "largest Δpixel")
        if rows:
            sheets.append(Sheet(after.path.name, head, rows, 3))
    return sheets


def _images(after: Fresh) -> list[Shown]:
    """Return the images of every case that changes, those of a case together."""
    before = read(after.path) if after.path.exists() else Recording(after.path, {}, (), {})
    new = Recording(after.path, {}, after.cases, after.tensors)
    made: list[Shown] = []
    for change in after.changes:
        if change.id != FILE:
            made += _of_case(change, before.of(change.id), new.of(change.id), _sides(after, change.id))
    return made


def _sides(after: Fresh, name: str) -> Sequence[int]:
    """Return the sides of a case's scales; none of one that is no longer planned."""
    case = next((case for case in after.cases if case["id"] == name), None)
    return networks(dict(case), after.models).pyramid.patch_nums if case else ()


def _of_case(
    change: Change, old: Mapping[str, Tensor], new: Mapping[str, Tensor], sides: Sequence[int]
) -> list[Shown]:  # fmt: skip
    before, after = _pngs(old), _pngs(new)
    made = []
    for row in range(max(len(before), len(after))):
        name = f"{change.id}, image {row}"
        if row < min(len(before), len(after)):
            marker, said = _marker(old["tokens"][row], new["tokens"][row], sides)
            made.append(Shown(name, said, gallery.tiles(before[row], after[row], name, SIDES), marker))
        else:
            side, png = (SIDES[0], before[row]) if row < len(before) else (SIDES[1], after[row])
            made.append(Shown(name, f"{MEANS[change.what].capitalize()}.",
                              (gallery.alone(png, f"Image of the {side}, {name}", side),)))  # fmt: skip
    return made


def _pngs(tensors: Mapping[str, Tensor]) -> list[bytes]:
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


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"
