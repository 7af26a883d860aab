"""The page of a verification, from its result and what its run file keeps to be looked at.

First what the run came to: the numbers that matter, what was compared, settings, worst images, cost, distance, origin.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from harness.judge import Divergence, Verdict, margin_bound
from harness.protocol import Contract, Guidance, growth, guidance_text
from harness.provenance import versions
from harness.report import laws_line, rounds_of, setting_name
from harness.report.html import _page as page
from harness.report.html import _scales as scales
from harness.report.html._gallery import gallery_parts, picture_pair, token_maps
from harness.report.html._page import Bullets, Line, counted, share, sheet_of
from harness.report.html._plots import Axis, Series, plot
from harness.report.html._story import first_parts, story_parts
from harness.rounding import precision
from harness.runs import COUNTS, Verification, case_number, exhibit_of, is_begun, pictures_of
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
    seen = replace(seen, pictures=_first_of_all(result, seen.pictures))
    head = page.Head(
        result.models, result.verdict.value, page.TONE[result.verdict], _headline(result), notes, first_parts(result),
        _made(result),
    )  # fmt: skip
    other, compared = result.against or "the sequential reference", bool(result.totals["draws"])
    order = f": that of the {result.first_word}, then the worst" if result.first_divergence else ""
    sections = page.sections_of(
        "run",
        {"other": other, "first": result.first_word, "order": order, "legend": scales.ROUND_LEGEND},
        images=_images(result, seen, result.against or "reference"),
        story=story_parts(result, seen.exhibit, seen.file, seen.case),
        result=[key_facts(result), *settings_parts(result)],
        worst=worst_parts(result),
        tokens=_maps(result, seen),
        compared=compared_parts(result),
        distance=distance_parts(result),
        scales=scales.scale_parts(result) if compared else [],
        rounds=_rounds(result, seen),
        cost=cost_parts(result),
        budget=budget_parts(result) if compared else [],
        provenance=provenance_parts(result, seen.file),
    )
    return page.as_html(head, sections)


def _made(result: Verification) -> page.Made | None:
    """Return when the run ended, its command, and the decoder's code."""
    record, ended = result.record, max((row.ended for each in result.settings for row in each.rows), default=0.0)
    if record is None or record.identity is None or not ended:
        return None
    command = shlex.join(["sdvar-harness", *record.command]) if record.recipe is not None else ""
    return page.Made(page.date_of(ended), command, record.identity.decoder.title)


def _headline(result: Verification) -> str:
    first, verdict = result.first_divergence, result.verdict
    work = f"{counted(result.images, 'image')} under {counted(len(result.settings), 'setting')}"
    if result.against:
        same = verdict in (Verdict.IDENTICAL, Verdict.TIE)
        text = f"No difference between the two decoders in {work}" if same else "The two decoders differ"
        return f"{text}, under the same random numbers."
    ended = verdict is Verdict.DEFECT and first is not None and first.component in ("crash", "process")
    text = page.VERDICTS[first.component if ended and first else verdict]
    if verdict is Verdict.DEFECT and result.laws and result.laws.broken and not _defects(result):
        right = result.totals["draws"] and not result.totals["unclaimed"]
        text = f"{'Every token is right' if right else 'No decode is wrong'}; a law of a correct decoder is broken."
    text = text.format(work=work, ties=counted(result.totals["ties"], "certified tie"))
    if verdict is Verdict.CONSISTENT and Contract.QUALITY.value in result.contract:
        text += " How far its images are from the sequential ones is below."
    return text


def _first_of_all(result: Verification, pictures: Sequence[Picture]) -> list[Picture]:
    """Return the pictures with that of the first defect before all others."""
    if (case := result.first_case) is None:
        return [*pictures]
    row, first = case
    place = row.task, row.setting, first.seed, first.image
    return sorted(pictures, key=lambda each: (each.task, each.setting, each.seed, each.image) != place)


def _images(result: Verification, seen: Seen, other: str) -> list[object]:
    layout = scales.layout_of(result)
    if layout is None:
        return []
    pairs = [picture_pair(picture, layout, _setting(result, picture), other) for picture in seen.pictures]
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
    layout, shown = scales.layout_of(result), [each for each in list(first.values())[:MOST_MAPS] if each.rounds]
    S, caption = layout.S if layout else 0, "columns are scales"
    return _first_and_folded([scales.time_line(p.rounds, S, f"{_title(result, p)}; {caption}") for p in shown])


def _first_and_folded(parts: Sequence[object]) -> list[object]:
    return [*parts[:1], *([page.Fold(counted(len(parts) - 1, "more image"), parts[1:])] if parts[1:] else [])]


def _setting(result: Verification, picture: Picture) -> str:
    number = picture.setting
    return setting_name(result.settings[number]) if number < len(result.settings) else f"setting {number}"


def _title(result: Verification, picture: Picture) -> str:
    return f"Seed {picture.seed}, image {picture.image}, label {picture.label}: {_setting(result, picture)}"


MOST_ROWS = 40  # of a table of settings or images
MOST_DOTS = 16
OPTIONAL = ("not claimed", "wrong tensors", "refused")  # columns that are left out where all is 0


def key_facts(result: Verification) -> page.Facts:
    names = ("draws", "identical", "ties", "wrong_tokens", "unclaimed")
    draws, identical, ties, wrong, unclaimed = (result.totals[name] for name in names)
    calls = [count for setting in result.settings for count in setting.target_calls]
    wrongs = [each for _, each in _defects(result)]
    places = len({place_of_first(each) for each in wrongs})
    others = f"{share(unclaimed, draws)} of those compared, each after the decoder's own tokens; none is claimed"
    if result.against:
        others = f"{share(unclaimed, draws)} of those compared, after the first difference: they are not judged"
    counts = [
        ("images", result.images, f"under {counted(len(result.settings), 'setting')}"),
        ("tokens compared", draws, f"{identical:,} identical"),
        ("first places of defects", places, f"of {counted(result.totals['defects'], 'defect')} in all"),
        ("wrong tokens", wrong, f"{share(wrong, draws)} of those compared"),
        ("certified ties", ties, "rounding alone decides there"),
        ("other tokens", unclaimed, others),
    ]
    items = [(what, f"{count:,}", text) for what, count, text in counts if count or what == "images"]
    if calls:
        alone = f"; decoding alone takes {layout.S}" if (layout := scales.layout_of(result)) else ""
        word = "target calls, as the decoder says" if result.is_its_word else "target calls"
        items.append((word, f"{sum(calls) / len(calls):.2f}", f"mean an image{alone}"))
    return page.Facts(items)


def compared_parts(result: Verification) -> list[object]:
    parts: list[object] = [text for name, text in page.MEANS.items() if name in result.contract]
    if result.against:
        parts = ["Neither decoder is called right: what is asked is where they first differ."]
    exercised = result.exercised
    lists: dict[str, list[tuple[str, str]]] = {
        f"Compared with {result.against or 'the reference'}, for every decode:":
            [(name, page.COMPARED.get(name, "")) for name in result.compared],
        "Not compared:": list(result.not_compared.items()),
        "Not asked, so that nothing is proved of it:":
            [(word, f"asked by {option}") for word, option in exercised.missing.items()],
        "What this decoder does not do:": list(exercised.not_done.items()),
        "Remarks, which are no defects where no result depends on them.":
            [(remark, f"in {counted(count, 'decode')}") for remark, count in result.remarks.items()],
    }  # fmt: skip
    if not result.compared:
        parts.append("There is nothing that every decode let be compared.")
    for lead, items in lists.items():
        parts += [lead, Bullets(items)] if items else []
    if result.compared and not result.not_compared:
        parts.append("Every tensor that this check knows of was compared.")
    if exercised.asked:
        parts.append(f"Asked of this decoder: {', '.join(exercised.asked)}.")
    if result.coverage.rounds:
        parts.append(f"Exercised: {result.coverage}.")
        if result.is_its_word:
            parts.append("Rounds, accepted scales, calls and rows are what the decoder says: nothing confirms them.")
    if result.laws is not None:
        parts.append(f"After them, on small networks of their own: {laws_line(result.laws)}.")
    return parts + [f"Counted otherwise than by the other: {text}." for text in result.changes[:4]]


def settings_parts(result: Verification) -> list[object]:
    shown = result.settings[:MOST_ROWS]
    rows = [
        [setting_name(setting), setting.verdict.value, *(f"{setting.total(name):,}" for name in COUNTS[:-1]),
         f"{setting.refused:,}", *rounds_of([setting], "–")]
        for setting in shown
    ]  # fmt: skip
    sheet = sheet_of("settings", rows, {k for k, setting in enumerate(shown) if setting.total("defects")})
    optional = OPTIONAL if result.totals["draws"] else sheet.head[3:]
    empty = {name for k, name in enumerate(sheet.head) if name in optional and all(row[k] == "0" for row in rows)}
    parts: list[object] = [sheet.without(empty).filled()] if rows else []
    if len(result.settings) > MOST_ROWS:
        parts.append(f"{len(result.settings) - MOST_ROWS:,} more settings are not listed.")
    return parts


def worst_parts(result: Verification) -> list[object]:
    """Return what is wrong: laws that are broken, the worst images, which labels and components they are of."""
    broken = result.laws.broken if result.laws else ()
    laws = [(law.clause, law.component) for law in broken]
    parts: list[object] = [sheet_of("broken laws", laws)] if laws else []
    defects = _defects(result)
    counts = Counter(place_of_first(listed) for _, listed in defects)
    examples = {place_of_first(listed): (setting, listed[0]) for setting, listed in reversed(defects)}
    rows = [
        (*place, f"seed {first.seed}, {f'image {first.image}' if first.image >= 0 else 'batch'}", setting,
         _or_dash(first.label), f"{count:,}", share(count, len(defects)))
        for place, count in counts.most_common(MOST_ROWS) for setting, first in [examples[place]]
    ]  # fmt: skip
    return [*parts, *([sheet_of("places", rows).filled()] if rows else [])]


def place_of_first(listed: Sequence[Divergence]) -> tuple[str, str, str]:
    """Return component, scale and position of an image's first defect, as words."""
    return listed[0].component, _or_dash(listed[0].scale), _or_dash(listed[0].position)


def _defects(result: Verification) -> list[tuple[str, list[Divergence]]]:
    """Return the setting and the defects of every image that has one; those of the run as a whole come first."""
    clauses = {law.clause for law in result.laws.broken} if result.laws else set()  # no images: they have a table
    defects = [("the run as a whole", [each]) for each in result.early if each.detail not in clauses]
    for setting in result.settings:
        by_image: dict[tuple[int, int, int], list[Divergence]] = {}
        for number, judgement in enumerate(setting.judgements):
            for each in judgement.defects:
                by_image.setdefault((number, each.seed, each.image), []).append(each)
        defects += [(setting_name(setting), listed) for listed in by_image.values()]
    return defects


def _or_dash(value: int) -> str:
    return "–" if value < 0 else str(value)


def cost_parts(result: Verification) -> list[object]:
    rows = []
    for setting in result.settings[:MOST_ROWS]:
        images = sum(judgement.images for judgement in setting.judgements)
        if not images:
            continue
        ours, theirs = setting.seconds, setting.reference_seconds
        caches = [sum(row.counts.cache_bytes.values()) for row in setting.rows if row.counts]
        peaks = (max(getattr(r, name) for r in setting.rows) for name in ("peak_bytes", "host_bytes", "device_bytes"))
        rows.append(
            (setting_name(setting), f"{ours:.2f} s", f"{theirs:.2f} s", f"{1000 * ours / images:.1f} ms",
             f"{1000 * theirs / images:.1f} ms", f"{theirs / ours:.2f}" if ours and theirs else "–",
             *map(page.size, (max(caches, default=0), *peaks)))
        )  # fmt: skip
    lead = (
        f"Decodes took {result.decode_seconds:.1f} s in all, summed over workers. Judging runs beside them, and other "
        "work may have slowed them down: sdvar-harness bench measures speed."
    )
    return [lead, *([sheet_of("cost", rows, other=result.against or "reference")] if rows else [])]


def distance_parts(result: Verification) -> list[object]:
    """Return how far images are from sequential ones, and what that buys; empty where tokens are claimed."""
    rows, series = list[list[str]](), list[Series]()
    for setting in [setting for setting in result.settings if setting.distances][:MOST_ROWS]:
        calls, name = setting.target_calls, setting_name(setting)
        row = [name, f"{sum(calls) / len(calls):.2f}" if calls else "–"]
        for measure in ("tokens", "f_hat", "pixels"):
            values = sorted(getattr(distance, measure) for distance in setting.distances)
            mean = sum(values) / len(values)
            figures = (mean, values[len(values) // 2], values[-1])
            row += [f"{100 * v:.3g} %" if measure == "tokens" else f"{v:.3g}" for v in figures]
        rows.append(row)
        if calls and len(series) < MOST_DOTS:  # `mean` is that of the pixels
            series.append(Series(name, [sum(calls) / len(calls)], [mean], line=False))
    if not rows:
        return []
    sheet = sheet_of("distance", rows)
    if not series:
        return [sheet]
    caption = "What the loss buys: target calls (fewer is faster) against mean pixel distance (less is closer)."
    x, y = Axis("mean target calls an image", low=0), Axis("mean |pixel difference|", low=0)
    return [page.Drawing("Scatter plot", plot(series, x, y, salt="trade"), caption), sheet]


def budget_parts(result: Verification) -> list[object]:
    """Return how far rounding may move a number at every scale, and where that is from."""
    if result.budget is None:
        return ["No budget was needed: nothing was decoded."]
    source, layout, record = f"Source: {result.budget.source}.", scales.layout_of(result), result.record
    if record is None or layout is None:
        return [source]
    budget, last = record.budget, layout.S - 1
    each: list[Guidance] = [task.request.guidance for task in result.plan.tasks]
    widest: Guidance = max(each, key=lambda guidance: growth(guidance, layout.ramp(last), last), default=0.0)
    rows = []
    for si in layout:
        at = budget.guided(widest, layout.ramp(si), si)
        rows.append((f"{si}", *(f"{v:.3g}" for v in (at.logits, at.logits_rms, at.f_hat, margin_bound(at.logits)))))
    return [source, sheet_of("budget", rows, guidance=guidance_text(widest))]


def provenance_parts(result: Verification, file: str) -> list[object]:
    record = result.record
    identity, words = (record.identity, record.command) if record else (None, ())
    rows = [("networks", result.models), ("device", str(result.device)), ("run file", file or "not kept")]
    rows += page.flat_rows(identity.as_dict() if identity else {"versions": versions(), "precision": precision()})
    sheet = sheet_of("run", rows)
    return [sheet, Line(shlex.join(["sdvar-harness", *map(str, words)]), "The command:")] if words else [sheet]
