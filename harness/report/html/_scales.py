"""Scale by scale: what was compared, what became of drafts, margins against what rounding explains; and the rounds."""

import math
from collections import Counter
from collections.abc import Sequence

from harness.judge import Divergence
from harness.protocol import Round, ScalePyramid
from harness.report import setting_name
from harness.report.html._page import PAGES, Drawing, Sheet, State, share, sheet_of
from harness.report.html._plots import Axis, Series, plot
from harness.runs import SettingResult, Verification

MOST_POINTS = 60  # of a scale and kind, those with the largest margins
MOST_LINES = 8
FINAL, LATER, ACCEPTED, CORRECTED, REJECTED, BONUS = (State(*words) for words in PAGES["states"]["rounds"])
ROUND_LEGEND = "; ".join(f"{state.letter} = {state.word}" for state in (ACCEPTED, CORRECTED, REJECTED, BONUS))
ROUND_COUNTS = "accepted tokens", "corrected", "target rows"


def layout_of(result: Verification) -> ScalePyramid | None:
    """Return the layout of the scales; none where the run ended before it was known."""
    return result.record.networks.pyramid if result.record else None


def scale_parts(result: Verification) -> list[object]:
    """Return what was compared at every scale, what became of drafts, and margins."""
    layout = layout_of(result)
    if layout is None:
        return []
    drafted = any(_by_scale(result.settings, "drafted", layout.S))
    acceptance = [_acceptance(result, layout.S)] if drafted else []
    return [_counts(result, layout), *acceptance, *_margins(result, layout.S)]


def _by_scale(settings: Sequence[SettingResult], name: str, scales: int) -> list[int]:
    """Return a count of `Counts.scales`, summed over everything judged under these settings."""
    counts = [row.counts.scales.get(name) for setting in settings for row in setting.rows if row.counts]
    return [sum(count[si] for count in counts if count) for si in range(scales)]


def _counts(result: Verification, layout: ScalePyramid) -> Sheet:
    differ, drafted, accepted, corrected, bonus = (
        _by_scale(result.settings, name, layout.S) for name in ("differ", "drafted", "kept", "corrected", "bonus")
    )
    ties = Counter(tie.scale for tie in _listed(result, "ties"))
    compared = sum(judgement.images for s in result.settings for judgement in s.judgements if judgement.draws)
    draws, times = layout.draws.counts, f" × {layout.channels}" if layout.channels > 1 else ""
    word = "differ" if any(setting.total("unclaimed") for setting in result.settings) else "wrong"
    wrong = [differ[si] - ties[si] for si in layout]
    rows = [
        (f"{si}{f' ({word})' if wrong[si] else ''}", f"{h} × {w}{times}", f"{compared * draws[si]:,}",
         f"{compared * draws[si] - differ[si]:,}", f"{ties[si]:,}", f"{wrong[si]:,}", f"{drafted[si]:,}",
         share(accepted[si], drafted[si]), f"{corrected[si]:,}", f"{bonus[si]:,}")
        for si, (h, w) in enumerate(layout.sides)
    ]  # fmt: skip
    return sheet_of("scales", rows, {si for si, count in enumerate(wrong) if count and word == "wrong"}, word=word)


def _acceptance(result: Verification, scales: int) -> Drawing:
    series, rows = [], []
    for setting in result.settings[:MOST_LINES]:
        name = setting_name(setting)
        drafted, accepted = (_by_scale([setting], count, scales) for count in ("drafted", "kept"))
        judged = [si for si in range(scales) if drafted[si]]
        if judged:
            series.append(Series(name, judged, [100 * accepted[si] / drafted[si] for si in judged]))
        rows.append((name, *(share(a, d) for a, d in zip(accepted, drafted, strict=True))))
    x, y = Axis("scale", ticks=range(scales)), Axis("drafted scales accepted, %", low=0)
    left = len(result.settings) - MOST_LINES
    caption = "How often a drafted scale was accepted, by scale; a line a setting."
    caption += f" {left} more settings are left out." if left > 0 else ""
    sheet = Sheet("Drafted scales accepted", ("setting", *map(str, range(scales))), rows)
    return Drawing("Line plot", plot(series, x, y, salt="acceptance"), caption, sheet)


def _margins(result: Verification, scales: int) -> list[object]:
    """Return a plot of margins, or what there is to say where no token was raced."""
    series, rows = [], []
    # a side step, so that ties and wrong tokens of one scale do not hide each other
    for name, kind, step in (("ties", "ties", 0.12), ("wrong tokens", "defects", -0.12)):
        raced = [each for each in _listed(result, kind) if each.position >= 0 and not math.isnan(each.margin)]
        x, y = list[float](), list[float]()
        for si in range(scales):
            pairs = [(max(0.0, each.margin), each.bound) for each in raced if each.scale == si]
            ratios = sorted((margin / bound if bound > 0 else math.inf for margin, bound in pairs), reverse=True)
            if ratios:
                figures = (_ratio_text(ratios[len(ratios) // 2]), _ratio_text(ratios[0]))
                rows.append((f"{si}, {name}", f"{len(ratios):,}", *figures))
            shown = [max(ratio, 1e-3) for ratio in ratios if math.isfinite(ratio)][:MOST_POINTS]
            x += [si + step] * len(shown)
            y += shown
        if x:
            series.append(Series(name, x, y, line=False))
    if not rows:
        differ = any(setting.total("unclaimed") or setting.total("wrong_tokens") for setting in result.settings)
        return [] if differ else ["Every compared token is identical, so there is no margin to show."]
    caption = "By how much a differing token loses, as a multiple of what rounding explains: above 1 it is no tie."
    sheet = sheet_of("margins", rows)
    if not series:
        return [sheet]
    axes = Axis("scale", ticks=range(scales)), Axis("margin / bound", log=True)
    return [Drawing("Scatter plot", plot(series, *axes, (1.0, "what rounding explains"), "margins"), caption, sheet)]


def _ratio_text(ratio: float) -> str:
    return f"{ratio:.3g}" if math.isfinite(ratio) else "filtered out"


def _listed(result: Verification, kind: str) -> list[Divergence]:
    return [each for s in result.settings for judgement in s.judgements for each in getattr(judgement, kind)]


def time_line(rounds: Sequence[Round], scales: int, caption: str) -> Sheet:
    """Return the rounds of one image on a time line: a row a round, a column a scale."""
    rows = list[list[str | State]]()
    for number, turn in enumerate(rounds, 1):
        counts = (turn.accepted_tokens, turn.corrected_tokens, turn.target_rows)
        rows.append([f"{number}", *(_state(si, turn) for si in range(scales)), *(f"{count:,}" for count in counts)])
    return Sheet(caption, ["round", *map(str, range(scales)), *ROUND_COUNTS], rows, kind="grid")


def _state(si: int, turn: Round) -> State:
    imperfect, after = turn.first + turn.accepted, turn.first + turn.drafted
    if si < imperfect:
        return FINAL if si < turn.first else ACCEPTED
    if si == imperfect and turn.corrected:
        return CORRECTED
    if si == after and turn.bonus:
        return BONUS
    return REJECTED if si < after else LATER
