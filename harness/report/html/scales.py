"""Scale by scale: what was compared, what became of drafts, margins against what rounding explains; and the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.judge.verdict import Divergence
from harness.protocol.trace import Round
from harness.report.html.page import Drawing, Grid, Lane, Sheet, State, Words, share
from harness.report.html.plots import Axis, Series, plot
from harness.runs.result import Verification
from harness.runs.setting import SettingResult

MOST_POINTS = 60  # of a scale and kind, those with the largest margins
MOST_LINES = 8


def sides_of(result: Verification) -> list[int]:
    """Return the sides of the scales; none where the run did not come so far as to say."""
    return list(result.about.get("networks", {}).get("patch_nums", []))


def by_scale(settings: Sequence[SettingResult], name: str, scales: int) -> list[int]:
    """Return a count of `Counts.scales`, summed over everything judged under these settings."""
    found = [0] * scales
    for row in (row for setting in settings for row in setting.rows if row.counts):
        assert row.counts is not None
        found = [a + b for a, b in zip(found, row.counts.scales.get(name) or [0] * scales, strict=True)]
    return found


def scale_parts(result: Verification) -> list[object]:
    """Return the parts of the section."""
    sides = sides_of(result)
    if not sides or not result.images:
        return [Words("Nothing was decoded.")]
    made: list[object] = [_counts(result, sides)]
    drafted = by_scale(result.settings, "drafted", len(sides))
    if any(drafted):
        made.append(_acceptance(result, len(sides)))
    return [*made, *_margins(result, len(sides))]


def _counts(result: Verification, sides: Sequence[int]) -> Sheet:
    S = len(sides)
    differ, drafted, kept, corrected, bonus = (
        by_scale(result.settings, name, S) for name in ("differ", "drafted", "kept", "corrected", "bonus")
    )
    ties = [0] * S
    for tie in _listed(result, "ties"):
        ties[tie.scale] += 1
    compared = sum(judgement.images for s in result.settings for judgement in s.judgements if judgement.draws)
    word = "differ" if any(setting.total("unclaimed") for setting in result.settings) else "wrong"
    rows, bad = [], []
    for si, side in enumerate(sides):
        draws = compared * side * side
        wrong = differ[si] - ties[si]
        rows.append(
            (f"{si}{f' ({word})' if wrong else ''}", f"{side} × {side}", f"{draws:,}", f"{draws - differ[si]:,}",
             f"{ties[si]:,}", f"{wrong:,}", f"{drafted[si]:,}", share(kept[si], drafted[si]), f"{corrected[si]:,}",
             f"{bonus[si]:,}")
        )  # fmt: skip
        bad += [si] if wrong and word == "wrong" else []
    head = ("scale", "tokens", "compared", "identical", "ties", word, "drafted", "kept whole", "corrected", "bonus")
    caption = "Tokens compared, and what became of drafted scales; all settings and images together"
    return Sheet(caption, head, rows, 1, frozenset(bad))


def _acceptance(result: Verification, scales: int) -> Drawing:
    series, rows = [], []
    for setting in result.settings[:MOST_LINES]:
        drafted, kept = (by_scale([setting], name, scales) for name in ("drafted", "kept"))
        points = [(si, 100 * k / d) for si, (k, d) in enumerate(zip(kept, drafted, strict=True)) if d]
        name = setting_name(setting)
        if points:
            series.append(Series(name, *columns(points)))
        rows.append((name, *(share(k, d) for k, d in zip(kept, drafted, strict=True))))
    x = Axis("scale", ticks=range(scales))
    svg = plot(series, x, Axis("drafted scales kept whole, %", low=0), salt="acceptance")
    left = len(result.settings) - MOST_LINES
    caption = "How often a drafted scale stood whole, by scale; a line a setting."
    caption += f" {left} more settings are left out." if left > 0 else ""
    sheet = Sheet("Drafted scales kept whole", ("setting", *map(str, range(scales))), rows)
    return Drawing(svg, f"Line plot: {caption} The numbers are in the table below it.", caption, sheet)


def _margins(result: Verification, scales: int) -> list[object]:
    found = {"ties": _listed(result, "ties"), "wrong tokens": _listed(result, "defects")}
    raced = {name: [d for d in of if d.position >= 0 and not math.isnan(d.margin)] for name, of in found.items()}
    if not any(raced.values()):
        return [Words("Every compared token is identical, so there is no margin to show.")] if not any(
            setting.total("unclaimed") or setting.total("wrong_tokens") for setting in result.settings
        ) else []  # fmt: skip
    series, rows = [], []
    for name, of in raced.items():
        points: list[tuple[float, float]] = []
        for si in range(scales):
            ratios = sorted((ratio(d) for d in of if d.scale == si), reverse=True)
            if ratios:
                rows.append(
                    (f"{si}, {name}", f"{len(ratios):,}", _number(ratios[len(ratios) // 2]), _number(ratios[0]))
                )
            # a side step, so that ties and wrong tokens of one scale do not hide each other
            finite = [max(r, 1e-3) for r in ratios if math.isfinite(r)]
            points += [(si + (0.12 if name == "ties" else -0.12), r) for r in finite[:MOST_POINTS]]
        if points:
            series.append(Series(name, *columns(points), line=False))
    caption = "By how much a differing token loses, as a multiple of what rounding explains: above 1 it is no tie."
    sheet = Sheet("Margin / bound", ("scale", "tokens", "median", "largest"), rows)
    if not series:
        return [sheet]
    x, y = Axis("scale", ticks=range(scales)), Axis("margin / bound", log=True)
    svg = plot(series, x, y, (1.0, "what rounding explains"), "margins")
    return [Drawing(svg, f"Scatter plot: {caption} The numbers are in the table below it.", caption, sheet)]


def columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the x and y of points."""
    return [x for x, _ in points], [y for _, y in points]


def ratio(found: Divergence) -> float:
    """Return a margin as a multiple of its bound."""
    return max(0.0, found.margin) / found.bound if found.bound > 0 else math.inf


def setting_name(setting: SettingResult) -> str:
    """Return a setting in words, with its draft."""
    return f"{setting.settings}{f', {setting.draft} draft' if setting.draft else ''}"


def _listed(result: Verification, name: str) -> list[Divergence]:
    return [d for s in result.settings for j in s.judgements for d in getattr(j, name)]


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "filtered out"


FINAL = State("final", "", "final before")
LATER = State("later", "", "not reached")
KEPT = State("kept", "K", "drafted and kept")
CORRECTED = State("corrected", "C", "drafted and corrected: wrong tokens replaced")
DROPPED = State("dropped", "d", "drafted and dropped")
BONUS = State("bonus", "B", "bonus: finished by the target, never drafted")
ROUND_LEGEND = "; ".join(f"{state.letter} = {state.word}" for state in (KEPT, CORRECTED, DROPPED, BONUS))
TAILS = "kept tokens", "replaced", "target rows"


def time_line(rounds: Sequence[Round], scales: int, caption: str) -> Grid:
    """Return the time line of one image: a row a round, a column a scale."""
    rows = [_lane(f"{number}", turn, scales) for number, turn in enumerate(rounds, 1)]
    return Grid(caption, "round", [f"{si}" for si in range(scales)], rows, TAILS)


def _lane(name: str, turn: Round, scales: int) -> Lane:
    fell, behind = turn.first + turn.accepted, turn.first + turn.drafted
    states = []
    for si in range(scales):
        if si < turn.first:
            states.append(FINAL)
        elif si < fell:
            states.append(KEPT)
        elif si == fell and turn.corrected:
            states.append(CORRECTED)
        elif si == behind and turn.bonus:
            states.append(BONUS)
        else:
            states.append(DROPPED if si < behind else LATER)
    counts = (turn.accepted_tokens, turn.corrected_tokens, turn.target_rows)
    return Lane(name, states, [f"{count:,}" for count in counts])
