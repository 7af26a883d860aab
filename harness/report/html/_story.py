"""The first divergence as a story: where it is, which tokens, with which scores, and how to see it again."""

import math
import shlex
from collections.abc import Mapping

from torch import Tensor

from harness.judge import CodeLine, Divergence, Verdict
from harness.protocol.pyramid import ScalePyramid
from harness.report import next_steps
from harness.report.html._gallery import place_of
from harness.report.html._page import COMPONENTS, Bullets, Fold, Line, Sheet, Text, counted
from harness.report.html._scales import layout_of
from harness.runs import Verification

NEAR = 8  # tokens of the prefix that are listed


def first_parts(result: Verification) -> list[object]:
    """Return what stands under the headline: where, which component, why and what to do next, or what was not asked."""
    first = result.first_divergence
    parts: list[object] = []
    if first is not None and result.verdict is Verdict.DEFECT:
        what = [
            ("where", _where(first, layout_of(result))),
            ("component", f"{first.component}. {COMPONENTS.get(first.component, '')}"),
        ]
        what.append(("what was seen", f"{first.detail}{_how_far(first)}"))
        endings = (judgement.ending for setting in result.settings for judgement in setting.judgements)
        ending, line = next(filter(None, endings), ""), result.line if isinstance(result.line, CodeLine) else None
        parts.append(Bullets([*what, *([("line", str(line))] if line else [])]))
        if ending:
            parts.append(Text(ending, "Its traceback, and what its process printed last:"))
        elif line and line.stack:
            parts.append(Fold("How that line is reached", [Text("\n".join(line.stack), "Its stack, the line first:")]))
    reasons: list[tuple[str, str]] = [(reason, "") for reason in result.inconclusive]
    is_open = result.verdict is not Verdict.DEFECT
    parts += ["Why the run proves nothing:", Bullets(reasons)] if reasons and is_open else []
    if (missing := result.exercised.missing) and is_open:
        parts.append(f"Not asked, so that nothing is proved of it: {', '.join(missing)}.")
    for word, (step, command) in zip(("Next", "Then"), next_steps(result), strict=False):
        parts.append(Line(command, f"{word}: {step}:") if command else f"{word}: {step}.")
    return parts


def story_parts(result: Verification, exhibit: Mapping[str, Tensor], file: str, case: int | None) -> list[object]:
    """Return the parts of the section, none where nothing differs; the other arguments are fields of `Seen`."""
    first = result.first_divergence
    if first is None:
        return []
    parts: list[object] = []
    if result.verdict is not Verdict.DEFECT:
        meaning = COMPONENTS.get(first.component, "")
        parts.append(f"{_where(first, layout_of(result))} {meaning} What was seen: {first.detail}.")
    if first.position >= 0:
        parts += [_tokens(first), *_prefix(exhibit), *_scores(first, exhibit)]
    parts += [f"How far that decode came: {text}." for text in result.so_far[:1]]
    return parts + _replays(result, file, case)


def _where(first: Divergence, layout: ScalePyramid | None) -> str:
    text = f"Seed {first.seed}"
    text += f", image {first.image}" if first.image >= 0 else ", the whole batch"
    text += f", label {first.label}" if first.label >= 0 else ""
    if first.scale >= 0:
        text += f". Scale {first.scale}"
    if first.scale >= 0 and layout:
        h, w = layout.sides[first.scale]
        text += f" of 0 to {layout.S - 1}, {h} × {w} {'tokens' if layout.channels == 1 else 'positions'}"
    if first.position >= 0 and layout:
        _, y, x = place_of(layout, first.position)
        text += f". Position {first.position} of the image: row {y}, column {x} of the scale"
        text += f", channel {first.channel} of {layout.channels}" if first.channel >= 0 else ""
    return f"{text}."


def _how_far(first: Divergence) -> str:
    """Return by how much tensors differ, where no token is shown whose story says it."""
    both = (("|Δlogits|", first.delta_logits), ("|Δf_hat|", first.delta_f_hat))
    known = [f"{what} {delta:.3g}" for what, delta in both if not math.isnan(delta) and first.position < 0]
    return f"; {', '.join(known)} at most" if known else ""


def _tokens(first: Divergence) -> str:
    if first.actual == first.expected:
        text = f"The token there, {first.actual}, is the reference's all the same; what leads to it is not."
    else:
        text = f"The decoder drew token {first.actual}. On the same prefix the reference draws {first.expected}."
    if math.isinf(first.margin):
        text += f" The request's filter drops {first.actual}."
    elif not math.isnan(first.margin):
        text += f" In the race the decoder's token loses by {first.margin:.3g}; rounding explains {first.bound:.3g}."
    if not math.isnan(first.delta_logits):
        text += f" The scores of that position differ by {first.delta_logits:.3g} at most."
    if not math.isnan(first.delta_f_hat):
        far = f"differs by {first.delta_f_hat:.3g} at most" if first.delta_f_hat else "is the same on both sides"
        text += f" The map after that scale {far}."
    return text


def _prefix(exhibit: Mapping[str, Tensor]) -> list[object]:
    """Say how long both sides agree, and list the last tokens that they agree on."""
    tokens = exhibit.get("tokens_L")
    if tokens is None:
        return []
    actual, expected = tokens.tolist()
    agreed = next((k for k, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b), len(actual))
    if not agreed:
        return ["No token comes before it: they differ at the very first one."]
    last = " ".join(map(str, actual[max(0, agreed - NEAR) : agreed]))
    lead = "the last ones " if agreed > NEAR else ""
    return [f"The prefix that agreed: {counted(agreed, 'token')} ({lead}{last})."]


def _scores(first: Divergence, exhibit: Mapping[str, Tensor]) -> list[object]:
    """Return both tokens with their scores and numbers, as far as both sides showed them."""
    sides = (("decoder", "actual"), ("reference", "expected"))
    scores = {side: exhibit[f"{key}.guided_V"].double() for side, key in sides if f"{key}.guided_V" in exhibit}
    if not scores:
        return ["The decoder shows no scores, so they cannot be set beside each other."]
    columns = {f"score, {side}": guided_V for side, guided_V in scores.items()}
    E_V = exhibit.get("E_V")
    if E_V is not None:
        columns["random number E"] = E_V.double()
        columns |= {f"race, {side}": guided_V - E_V.double().log() for side, guided_V in scores.items()}
    names = {first.expected: "reference's", first.actual: "decoder's"}
    if first.actual == first.expected:
        names = {first.actual: "both sides'"}
    V = len(next(iter(scores.values())))
    rows = [
        (f"{token} ({whose})", *(f"{float(column[token]):.6g}" for column in columns.values()))
        for token, whose in names.items()
        if 0 <= token < V
    ]
    sheet = Sheet("Both tokens: scores after guidance, before any filter", ["token", *columns], rows)
    if E_V is None:
        return [sheet]
    race = "A draw is a race: the token with the largest score − log E wins. Both sides meet the same E."
    return [sheet, race]


def _replays(result: Verification, file: str, case: int | None) -> list[object]:
    lines: list[object] = []
    if result.alone and result.verdict is not Verdict.DEFECT:  # of a defect it stands above
        lines.append(Line(result.alone, "This line shows it alone:"))
    if file and case is not None:
        command = shlex.join(["sdvar-harness", "replay", file, "--case", str(case)])
        lines.append(Line(command, "This line repeats it from the run file, and says whether it still fails:"))
    if result.early:
        return [*lines, "It is of the run as a whole: no image shows it alone."]
    return lines if lines or result.alone else ["No command line made this run, so there is none that repeats it."]
