"""The page of `golden diff`: what a regeneration would change, with the images before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.golden.cases import networks
from harness.golden.record import FILE, Fresh
from harness.golden.store import Recording, read
from harness.report.html import gallery
from harness.report.html.gallery import Shown
from harness.report.html.origin import here
from harness.report.html.page import Facts, Page, Section, Sheet, Words, as_html, counted
from harness.report.html.sidebyside import side_by_side

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
            old, now, sides = before.of(change.id), new.of(change.id), _sides(after, change.id)
            made += side_by_side(change.id, (old, now), SIDES, sides, f"{MEANS[change.what].capitalize()}.")
    return made


def _sides(after: Fresh, name: str) -> Sequence[int]:
    """Return the sides of a case's scales; none of one that is no longer planned."""
    case = next((case for case in after.cases if case["id"] == name), None)
    return networks(dict(case), after.models).pyramid.patch_nums if case else ()


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"
