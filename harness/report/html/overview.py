"""What a run came to: the numbers that matter, what was compared, settings, worst images, cost, distance, origin."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.judge.race import margin_bound
from harness.judge.verdict import Divergence
from harness.provenance import versions
from harness.report.html.page import Bullets, Drawing, Facts, Line, Sheet, Words, counted, flat_rows, share, size
from harness.report.html.plots import Axis, Series, plot
from harness.report.html.scales import setting_name, sides_of
from harness.report.html.words import COMPARED, contracts
from harness.report.terminal import laws_line
from harness.rounding.budget import Budget
from harness.rounding.precision import precision
from harness.runs.claims import BrokenLaw
from harness.runs.result import Verification
from harness.runs.setting import SettingResult

MOST_ROWS = 40  # of a table of settings or images
OPTIONAL = ("not claimed", "wrong tensors", "refused")  # columns that are left out where all is 0


def key_facts(result: Verification) -> Facts:
    """Return the numbers that matter most."""
    totals = {name: sum(s.total(name) for s in result.settings) for name in ("draws", "identical", "ties")}
    wrong = sum(setting.total("wrong_tokens") for setting in result.settings)
    unclaimed = sum(setting.total("unclaimed") for setting in result.settings)
    calls = [count for setting in result.settings for count in setting.target_calls]
    items = [
        ("images decoded", f"{result.images:,}", f"under {counted(len(result.settings), 'setting')}"),
        ("tokens compared", f"{totals['draws']:,}", f"{totals['identical']:,} identical"),
        ("wrong tokens", f"{wrong:,}", f"{share(wrong, totals['draws'])} of those compared" if totals["draws"] else ""),
        ("certified ties", f"{totals['ties']:,}", "rounding alone decides there"),
    ]
    if unclaimed:
        items[2] = ("other tokens", f"{unclaimed:,}", f"{share(unclaimed, totals['draws'])}; none is claimed")
    if calls:
        scales = len(sides_of(result))
        alone = f"mean an image; decoding alone takes {scales}" if scales else "mean an image"
        items.append(("target calls", f"{sum(calls) / len(calls):.2f}", alone))
    return Facts(items)


def compared_parts(result: Verification) -> list[object]:
    """Return what was claimed, what was compared, and what was not."""
    made: list[object] = [Words(text) for text in contracts(result.contract)]
    if result.against:
        made.append(
            Words(f"In the reference's place stands another decoder, {result.against}: neither is called right.")
        )
    if result.compared:
        made.append(Words(f"Compared with {result.against or 'the reference'}, for every decode:"))
        made.append(Bullets([(name, COMPARED.get(name, "")) for name in result.compared]))
    else:
        made.append(Words("Nothing was compared for every decode."))
    if result.not_compared:
        made.append(Words("Not compared:"))
        made.append(Bullets(list(result.not_compared.items())))
    elif result.compared:
        made.append(Words("Nothing that this check knows of was left out."))
    if result.inconclusive:
        made.append(Words("Why the run proves nothing:"))
        made.append(Bullets([(reason, "") for reason in result.inconclusive]))
    if result.coverage.rounds:
        made.append(Words(f"Exercised: {result.coverage}."))
    if result.laws is not None:
        made.append(Words(f"Beside them, on small networks of their own: {laws_line(result.laws)}."))
    made += [Words(f"Counted otherwise than by the other: {text}.") for text in result.changes[:4]]
    return made


def settings_parts(result: Verification) -> list[object]:
    """Return a table with a line a setting."""
    rows: list[tuple[str, ...]] = []
    bad: list[int] = []
    for k, setting in enumerate(result.settings[:MOST_ROWS]):
        calls = setting.target_calls
        accepted = [count for rounds in setting.accepted_scales for count in rounds]
        rows.append(
            (setting_name(setting), setting.verdict.value,
             *(f"{setting.total(n):,}" for n in ("images", "draws", "identical", "ties", "wrong_tokens", "unclaimed")),
             f"{setting.total('wrong_tensors'):,}", f"{setting.refused:,}",
             f"{sum(calls) / len(calls):.2f} ({min(calls)}–{max(calls)})" if calls else "–",
             f"{sum(accepted) / len(accepted):.2f}" if accepted else "–")
        )  # fmt: skip
        bad += [k] if setting.total("defects") else []
    head = ("setting", "verdict", "images", "tokens", "identical", "ties", "wrong", "not claimed", "wrong tensors",
            "refused", "target calls, mean (range)", "scales kept a round")  # fmt: skip
    kept = [k for k, name in enumerate(head) if name not in OPTIONAL or any(row[k] != "0" for row in rows)]
    rows = [tuple(row[k] for k in kept) for row in rows]
    sheet = Sheet("Results by setting", [head[k] for k in kept], rows, 2, frozenset(bad))
    made: list[object] = [sheet] if rows else []
    if len(result.settings) > MOST_ROWS:
        made.append(Words(f"{len(result.settings) - MOST_ROWS:,} more settings are not listed."))
    return made


@dataclass(frozen=True)
class Bad:
    """One image with something wrong: its first defect, and how many there are."""

    setting: str
    first: Divergence
    defects: int


def worst_images(result: Verification) -> list[object]:
    """Return the worst images, and which labels and components they are of."""
    found = sorted(_bad(result), key=lambda each: -each.defects)
    broken = _broken_laws(result)
    if not found:
        return broken
    rows = [
        (f"seed {bad.first.seed}, image {bad.first.image}" if bad.first.image >= 0 else f"seed {bad.first.seed}, batch",
         bad.setting, bad.first.component, _or_dash(bad.first.label), _or_dash(bad.first.scale),
         _or_dash(bad.first.position), f"{bad.defects:,}")
        for bad in found[:MOST_ROWS]
    ]  # fmt: skip
    head = ("image", "setting", "component", "label", "scale", "position", "defects listed")
    made: list[object] = [*broken, Sheet("The worst images, each with its first defect", head, rows, 3)]
    if len(found) > MOST_ROWS:
        made.append(Words(f"{len(found) - MOST_ROWS:,} more are not listed; the run file holds them all."))
    for word, of in (
        ("component", Counter(bad.first.component for bad in found)),
        ("label", Counter(_or_dash(bad.first.label) for bad in found)),
        ("scale", Counter(_or_dash(bad.first.scale) for bad in found)),
    ):
        most = of.most_common(20)
        lines = [(name, f"{count:,}", share(count, len(found))) for name, count in most]
        made.append(Sheet(f"Images with a defect, by {word} of the first one", (word, "images", "share"), lines))
    return made


def _broken(result: Verification) -> Sequence[BrokenLaw]:
    return result.laws.broken if result.laws is not None else ()


def _broken_laws(result: Verification) -> list[object]:
    """Return a table of the laws that are broken, each with what was seen and the line that replays it."""
    rows = [(law.clause, law.component) for law in _broken(result)]
    return [Sheet("Laws that are broken", ("what was seen", "components that it watches"), rows, 2)] if rows else []


def _bad(result: Verification) -> list[Bad]:
    """Return every image with a defect, under every setting, and what is wrong with the run as a whole."""
    clauses = {law.clause for law in _broken(result)}  # no images: they have a table of their own
    found = [Bad("the run as a whole", each, 1) for each in result.early if each.detail not in clauses]
    for setting in result.settings:
        found += _bad_of(setting)
    return found


def _bad_of(setting: SettingResult) -> list[Bad]:
    by_image: dict[tuple[int, int, int], list[Divergence]] = {}
    for number, judgement in enumerate(setting.judgements):
        for each in judgement.defects:
            by_image.setdefault((number, each.seed, each.image), []).append(each)
    return [Bad(setting_name(setting), of[0], len(of)) for of in by_image.values()]


def _or_dash(value: int) -> str:
    return "–" if value < 0 else str(value)


def gap(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, median and largest of some numbers, at least one."""
    ordered = sorted(values)
    return sum(ordered) / len(ordered), ordered[len(ordered) // 2], ordered[-1]


MOST_DOTS = 16


def cost_parts(result: Verification) -> list[object]:
    """Return seconds and memory by setting."""
    rows = []
    for setting in result.settings[:MOST_ROWS]:
        images = sum(row.judgement.images for row in setting.rows if not row.refused)
        if not images:
            continue
        ours, theirs = setting.seconds, setting.reference_seconds
        held = [row.counts.cache_bytes for row in setting.rows if row.counts]
        rows.append(
            (setting_name(setting), f"{ours:.2f} s", f"{theirs:.2f} s", f"{1000 * ours / images:.1f} ms",
             f"{1000 * theirs / images:.1f} ms", f"{theirs / ours:.2f}" if ours and theirs else "–",
             size(max((sum(of.values()) for of in held), default=0)),
             size(max(row.peak_bytes for row in setting.rows)), size(max(row.host_bytes for row in setting.rows)),
             size(max(row.device_bytes for row in setting.rows)))
        )  # fmt: skip
    other = result.against or "reference"
    head = ("setting", "decoder", other, "decoder, an image", f"{other}, an image", "times as fast", "its caches",
            "its peak", "judge's process", "GPU")  # fmt: skip
    lead = (
        f"Decodes took {result.decode_seconds:.1f} s in all, summed over workers. Judging runs beside them, and other "
        "work may have slowed them down: sdvar-harness bench measures speed."
    )
    made: list[object] = [Words(lead)]
    if rows:
        made.append(Sheet("Time and memory by setting", head, rows))
    return made


def distance_parts(result: Verification) -> list[object]:
    """Return how far images are from sequential ones, and what that buys; empty where tokens are claimed."""
    measured = [setting for setting in result.settings if setting.distances]
    if not measured:
        return []
    rows: list[tuple[str, ...]] = []
    series: list[Series] = []
    for setting in measured[:MOST_ROWS]:
        cells = []
        for name in ("tokens", "f_hat", "pixels"):
            values = gap([getattr(distance, name) for distance in setting.distances])
            cells += [f"{100 * v:.3g} %" if name == "tokens" else f"{v:.3g}" for v in values]
        calls = setting.target_calls
        mean = sum(calls) / len(calls) if calls else float("nan")
        rows.append((setting_name(setting), f"{mean:.2f}" if calls else "–", *cells))
        if calls and len(series) < MOST_DOTS:
            far = gap([distance.pixels for distance in setting.distances])[0]
            series.append(Series(setting_name(setting), [mean], [far], line=False))
    statistics = ("mean", "median", "worst")
    head = (
        "setting",
        "target calls",
        *(f"{name}, {s}" for name in ("tokens", "Δf_hat", "Δpixel") for s in statistics),
    )
    sheet = Sheet("Distance from sequential decoding of the same seed", head, rows)
    if not series:
        return [sheet]
    caption = "What the loss buys: target calls (fewer is faster) against mean pixel distance (less is closer)."
    x, y = Axis("mean target calls an image", low=0), Axis("mean |pixel difference|", low=0)
    svg = plot(series, x, y, salt="trade")
    return [Drawing(svg, f"Scatter plot: {caption} The numbers are in the table.", caption), sheet]


def budget_parts(result: Verification) -> list[object]:
    """Return how far rounding may move a number at every scale, and where that is from."""
    allowed = result.budget
    if allowed is None:
        return [Words("No budget was needed: nothing was decoded.")]
    made: list[object] = [Words(f"Source: {allowed.source}.")]
    sides, told = sides_of(result), result.about.get("budget")
    if not sides or not told:
        return made
    budget, cfg = Budget(**told), max((abs(task.request.cfg) for task in result.plan.tasks), default=0.0)
    rows = []
    for si in range(len(sides)):
        at = budget.guided(cfg, si / (len(sides) - 1) if len(sides) > 1 else 0.0)
        rows.append((f"{si}", *(f"{v:.3g}" for v in (at.logits, at.logits_rms, at.f_hat, margin_bound(at.logits)))))
    head = ("scale", "guided score, any", "guided score, rms", "f_hat", "largest margin of a tie")
    return [*made, Sheet(f"What rounding may move, at the largest guidance of the run, cfg {cfg:g}", head, rows)]


def provenance_parts(result: Verification, file: str) -> list[object]:
    """Return what the run was of, and the command that made it."""
    rows = [("networks", result.models), ("device", str(result.device)), ("run file", file or "not kept")]
    rows += flat_rows(result.about.get("identity") or {"versions": versions(), "precision": precision()})
    made: list[object] = [Sheet("What the run was of", ("what", "value"), rows, 2)]
    if words := result.about.get("command"):
        made.append(Line(shlex.join(["sdvar-harness", *map(str, words)]), "The command:"))
    return made
