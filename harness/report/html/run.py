"""The page of a verification, from its result and what its run file keeps to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from harness.judge.verdict import Verdict
from harness.protocol.contract import Contract
from harness.report.html import gallery, overview, scales, story
from harness.report.html.page import Fold, Page, Section, Words, as_html, counted
from harness.report.html.words import TONE, VERDICTS
from harness.runs.pictures import Picture
from harness.runs.result import Verification
from harness.runs.runfile import case_number, exhibit_of, is_begun, pictures_of

MOST_MAPS = 5  # images whose tokens and rounds are drawn


@dataclass(frozen=True)
class Seen:
    """What a run file keeps to be looked at.

    Args:
        pictures: worst first.
        exhibit: tensors around the first divergence.
        file: the run file, as a user may type it; empty where it is not kept.
        case: number of the first divergence for `replay`; None where it is none of its cases.
    """

    pictures: Sequence[Picture] = ()
    exhibit: Mapping[str, Tensor] = field(default_factory=dict)
    file: str = ""
    case: int | None = None


def seen_in(path: Path, result: Verification, keeps: bool = True) -> Seen:
    """Return what a run file keeps.

    Args:
        path: the file; a run that could not begin left none.
        result: of its run.
        keeps: the file stays, so that the page may name it.
    """
    if not is_begun(path):
        return Seen()
    case, name = result.first_case, str(path) if keeps else ""
    pictures = pictures_of(path)
    if case is None or result.early:
        return Seen(pictures, file=name)
    return Seen(pictures, exhibit_of(path, case[0]), name, case_number(path, case[0]))


def run_page(result: Verification, seen: Seen) -> bytes:
    """Return the page of a verification as one HTML file."""
    return as_html(Page(result.models, result.verdict.value, TONE[result.verdict], _headline(result),
                        _sections(result, seen), _notes(result)))  # fmt: skip


def _headline(result: Verification) -> str:
    if result.against:
        right = result.verdict in (Verdict.IDENTICAL, Verdict.TIE)
        return f"{'Both decoders draw the same' if right else 'The two decoders part'}, under the same random numbers."
    text = VERDICTS[result.verdict]
    if result.verdict is Verdict.CONSISTENT and Contract.QUALITY.value in result.contract:
        text += " How far its images are from the sequential ones is below."
    return text


def _notes(result: Verification) -> list[str]:
    if result.is_whole:
        return []
    return [f"the run is not finished: {result.images:,} of {counted(result.plan.images, 'image')} are judged"]


def _sections(result: Verification, seen: Seen) -> list[Section]:
    other = result.against or "reference"
    found = result.first_divergence is not None
    return [
        Section("result", "Result", "", [overview.key_facts(result), *overview.settings_parts(result)]),
        Section("compared", "What was compared, and what was not",
                "The decoder under test and a plain sequential sampler met the same random numbers.",
                overview.compared_parts(result)),
        Section("story", story.story_title(result) if found else "Divergence",
                "Where the two sides part first, and how to see it again." if found else "",
                story.story_parts(result, seen.exhibit, (seen.file, seen.case))),
        Section("distance", "Distance and what it buys", "Measured, never judged.", overview.distance_parts(result)),
        Section("images", "Images",
                f"The {other}'s image, the decoder's, and their difference; worst first. The images of one seed part "
                "for good behind the first token that differs.",
                _images(result, seen, other)),
        Section("tokens", "Token maps",
                "Every token of the decoder beside what the reference draws on the same tokens before it, so that one "
                "mistake is not counted again in all that follows it.", _maps(result, seen)),
        Section("worst", "What is wrong", "", overview.worst_images(result)),
        Section("scales", "Scale by scale", "", scales.scale_parts(result)),
        Section("rounds", "Rounds",
                "A round: the small model drafts some scales, the large one checks them in one pass, and at least one "
                f"scale is final. {scales.ROUND_LEGEND}.", _rounds(result, seen)),
        Section("cost", "Time and memory", "", overview.cost_parts(result)),
        Section("budget", "How much rounding may move",
                "Two right decoders differ by rounding. These limits were measured on the reference before the decoder "
                "was built, so that a bug cannot excuse itself.", overview.budget_parts(result)),
        Section("provenance", "Provenance", "All that is needed to repeat the run.",
                overview.provenance_parts(result, seen.file)),
    ]  # fmt: skip


def _setting(result: Verification, number: int) -> str:
    return scales.setting_name(result.settings[number]) if number < len(result.settings) else f"setting {number}"


def _images(result: Verification, seen: Seen, other: str) -> list[object]:
    if not seen.pictures:
        return [Words("The run kept none: no decode came so far that its result is an image.")]
    sides = scales.sides_of(result)
    items = [
        gallery.picture_pair(picture, sides, _setting(result, picture.setting), other) for picture in seen.pictures
    ]
    return gallery.gallery_parts(items, result.images)


def _maps(result: Verification, seen: Seen) -> list[object]:
    sides = scales.sides_of(result)
    made = [
        gallery.token_maps(picture, sides, f"{_name(picture)}: {_setting(result, picture.setting)}")
        for picture in seen.pictures[:MOST_MAPS]
        if picture.badness or picture is seen.pictures[0]
    ]
    return [*made[:1], *([Fold(counted(len(made) - 1, "more image"), made[1:])] if made[1:] else [])]


def _rounds(result: Verification, seen: Seen) -> list[object]:
    S = len(scales.sides_of(result))
    made = [
        scales.time_line(
            picture.rounds, S, f"{_name(picture)}: {_setting(result, picture.setting)}; columns are scales"
        )
        for picture in _one_a_setting(seen.pictures)
        if picture.rounds
    ]
    return [*made[:1], *([Fold(counted(len(made) - 1, "more image"), made[1:])] if made[1:] else [])]


def _one_a_setting(pictures: Sequence[Picture]) -> list[Picture]:
    """Return the first picture of every setting, in order, `MOST_MAPS` at most."""
    found: dict[int, Picture] = {}
    for picture in pictures:
        found.setdefault(picture.setting, picture)
    return list(found.values())[:MOST_MAPS]


def _name(picture: Picture) -> str:
    return f"Seed {picture.seed}, image {picture.image}, label {picture.label}"
