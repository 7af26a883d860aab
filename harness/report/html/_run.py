"""The page of a verification, from its result and what its run file keeps to be looked at."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from harness.judge import Verdict
from harness.protocol import Contract
from harness.report import first_word, setting_name
from harness.report.html import _overview as overview
from harness.report.html import _scales as scales
from harness.report.html._gallery import gallery_parts, picture_pair, token_maps
from harness.report.html._page import TONE, VERDICTS, Fold, Head, Made, Section, as_html, counted, date_of, sections_of
from harness.report.html._story import first_parts, story_parts
from harness.runs import Verification, case_number, exhibit_of, is_begun, pictures_of
from harness.runs.pictures import Picture

MOST_MAPS = 5  # images whose tokens and rounds are drawn


@dataclass(frozen=True)
class Seen:
    """What a run file keeps to be looked at."""

    pictures: Sequence[Picture] = ()  # worst first
    exhibit: Mapping[str, Tensor] = field(default_factory=dict)  # tensors around the first divergence
    file: str = ""  # the run file, as a user may type it; empty where it is not kept
    case: int | None = None  # number of the first divergence for `replay`; None where it is none of its cases


def seen_in(path: Path, result: Verification, keeps: bool = True) -> Seen:
    """Return what the file of a run keeps to be looked at; the page names a file that stays (`keeps`)."""
    if not is_begun(path):  # a run that could not begin left none
        return Seen()
    case, name, pictures = result.first_case, str(path) if keeps else "", pictures_of(path)
    if case is None or result.early:
        return Seen(pictures, file=name)
    return Seen(pictures, exhibit_of(path, case[0]), name, case_number(path, case[0]))


def run_page(result: Verification, seen: Seen) -> bytes:
    unfinished = f"the run is not finished: {result.images:,} of {counted(result.plan.images, 'image')} are judged"
    notes = [] if result.is_whole else [unfinished]
    head = Head(
        result.models, result.verdict.value, TONE[result.verdict], _headline(result), notes, first_parts(result),
        _made(result),
    )  # fmt: skip
    return as_html(head, _sections(result, seen))


def _made(result: Verification) -> Made | None:
    """Return when the run ended, its command, and the decoder's code."""
    record, ended = result.record, max((row.ended for each in result.settings for row in each.rows), default=0.0)
    if record is None or record.identity is None or not ended:
        return None
    command = shlex.join(["sdvar-harness", *record.command]) if record.recipe is not None else ""
    return Made(date_of(ended), command, record.identity.decoder.title)


def _headline(result: Verification) -> str:
    first, verdict = result.first_divergence, result.verdict
    work = f"{counted(result.images, 'image')} under {counted(len(result.settings), 'setting')}"
    if result.against:
        same = verdict in (Verdict.IDENTICAL, Verdict.TIE)
        text = f"No difference between the two decoders in {work}" if same else "The two decoders differ"
        return f"{text}, under the same random numbers."
    ended = verdict is Verdict.DEFECT and first is not None and first.component in ("crash", "process")
    text = VERDICTS[first.component if ended and first else verdict]
    text = text.format(work=work, ties=counted(result.totals["ties"], "certified tie"))
    if verdict is Verdict.CONSISTENT and Contract.QUALITY.value in result.contract:
        text += " How far its images are from the sequential ones is below."
    return text


def _sections(result: Verification, seen: Seen) -> list[Section]:
    other, compared = result.against or "reference", bool(result.totals["draws"])
    return sections_of(
        "run",
        {"other": other, "story": f"The {first_word(result)}", "legend": scales.ROUND_LEGEND},
        images=_images(result, seen, other),
        story=story_parts(result, seen.exhibit, seen.file, seen.case),
        result=[overview.key_facts(result), *overview.settings_parts(result)],
        worst=overview.worst_parts(result),
        tokens=_maps(result, seen),
        compared=overview.compared_parts(result),
        distance=overview.distance_parts(result),
        scales=scales.scale_parts(result) if compared else [],
        rounds=_rounds(result, seen),
        cost=overview.cost_parts(result),
        budget=overview.budget_parts(result) if compared else [],
        provenance=overview.provenance_parts(result, seen.file),
    )


def _images(result: Verification, seen: Seen, other: str) -> list[object]:
    layout = scales.layout_of(result)
    if layout is None:
        return []
    first = result.first_divergence
    of_first = (first.seed, first.image) if first else ()  # its image stands before all others
    pictures = sorted(seen.pictures, key=lambda picture: (picture.seed, picture.image) != of_first)
    pairs = [picture_pair(picture, layout, _setting(result, picture), other) for picture in pictures]
    return gallery_parts(pairs, result.images) if pairs else []


def _maps(result: Verification, seen: Seen) -> list[object]:
    layout = scales.layout_of(result)
    shown = [each for each in seen.pictures[:MOST_MAPS] if each.badness or each is seen.pictures[0]]
    return _first_and_folded([token_maps(each, layout, _title(result, each)) for each in shown if layout is not None])


def _rounds(result: Verification, seen: Seen) -> list[object]:
    """Return the rounds of the first picture of every setting, `MOST_MAPS` at most."""
    first: dict[int, Picture] = {}
    for picture in seen.pictures:
        first.setdefault(picture.setting, picture)
    S, shown = scales.scales_of(result), [each for each in list(first.values())[:MOST_MAPS] if each.rounds]
    caption = "columns are scales"
    return _first_and_folded([scales.time_line(p.rounds, S, f"{_title(result, p)}; {caption}") for p in shown])


def _first_and_folded(parts: Sequence[object]) -> list[object]:
    return [*parts[:1], *([Fold(counted(len(parts) - 1, "more image"), parts[1:])] if parts[1:] else [])]


def _setting(result: Verification, picture: Picture) -> str:
    number = picture.setting
    return setting_name(result.settings[number]) if number < len(result.settings) else f"setting {number}"


def _title(result: Verification, picture: Picture) -> str:
    return f"Seed {picture.seed}, image {picture.image}, label {picture.label}: {_setting(result, picture)}"
