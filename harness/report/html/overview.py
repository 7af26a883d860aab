"""What a run came to: the numbers that matter, what was compared and what was not, settings, worst images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.judge.verdict import Divergence
from harness.report.html.page import Bullets, Facts, Sheet, Words, counted, share
from harness.report.html.scales import named, sides_of
from harness.report.html.words import COMPARED, contracts
from harness.report.terminal import laws
from harness.runs.result import BrokenLaw, SettingResult, Verification

MOST_ROWS = 40  # of a table of settings or images
OPTIONAL = ("not claimed", "wrong tensors", "refused")  # columns that are left out where all is 0


def facts(result: Verification) -> Facts:
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


def compared(result: Verification) -> list[object]:
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
        made.append(Words(f"Beside them, on small networks of their own: {laws(result.laws)}."))
    made += [Words(f"Counted otherwise than by the other: {text}.") for text in result.changes[:4]]
    return made


def settings(result: Verification) -> list[object]:
    """Return a table with a line a setting."""
    rows: list[tuple[str, ...]] = []
    bad: list[int] = []
    for k, setting in enumerate(result.settings[:MOST_ROWS]):
        calls = setting.target_calls
        accepted = [count for rounds in setting.accepted_scales for count in rounds]
        rows.append(
            (named(setting), setting.verdict.value,
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


def images(result: Verification) -> list[object]:
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
    return [Bad(named(setting), of[0], len(of)) for of in by_image.values()]


def _or_dash(value: int) -> str:
    return "–" if value < 0 else str(value)


def gap(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, median and largest of some numbers, at least one."""
    ordered = sorted(values)
    return sum(ordered) / len(ordered), ordered[len(ordered) // 2], ordered[-1]
