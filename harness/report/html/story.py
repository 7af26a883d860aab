"""The first divergence as a story: where it is, which tokens, with which scores, and how to see it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from torch import Tensor

from harness.judge.verdict import Divergence, Verdict
from harness.report.html.gallery import place_of
from harness.report.html.page import Line, Sheet, Words, counted
from harness.report.html.scales import sides_of
from harness.report.html.words import COMPONENTS
from harness.runs.result import Verification

NEAR = 8  # tokens of the prefix that are listed
Exhibit = Mapping[str, Tensor]


def story_title(result: Verification) -> str:
    """Return the heading of the section."""
    if result.against:
        return "The first difference"
    return "The first tie" if result.verdict in (Verdict.TIE, Verdict.INCONCLUSIVE) else "The first defect"


def story_parts(result: Verification, exhibit: Exhibit, kept: tuple[str, int | None]) -> list[object]:
    """Return the parts of the section.

    Args:
        result: of the run.
        exhibit: tensors around the first divergence (`runs.pictures`); empty where none were kept.
        kept: the run file, empty where it is not kept, and the number of the divergence for `replay`, if it has one.
    """
    found = result.first_divergence
    if found is None:
        unclaimed = any(setting.total("unclaimed") for setting in result.settings)
        rest = "tokens differ, and are not claimed" if unclaimed else "nothing differs from the reference"
        return [Words(f"There is none: {rest}." if result.images else "Nothing was decoded.")]
    made: list[object] = [Words(_where(found, sides_of(result))), Words(_what(found))]
    if found.position >= 0:
        made += [Words(_tokens(found)), *_prefix(found, exhibit), *_scores(found, exhibit)]
    made += [Words(f"How far that decode came: {text}.") for text in result.so_far[:1]]
    return made + _replays(result, *kept)


def _where(found: Divergence, sides: Sequence[int]) -> str:
    text = f"Seed {found.seed}"
    text += f", image {found.image}" if found.image >= 0 else ", the whole batch"
    text += f", label {found.label}" if found.label >= 0 else ""
    if found.scale >= 0:
        text += f". Scale {found.scale}"
        text += f" of 0 to {len(sides) - 1}, {sides[found.scale]} × {sides[found.scale]} tokens" if sides else ""
    if found.position >= 0 and sides:
        _, y, x = place_of(sides, found.position)
        text += f". Position {found.position}: row {y}, column {x} of that map"
    return f"{text}."


def _what(found: Divergence) -> str:
    plain = COMPONENTS.get(found.component, "")
    return f"Component: {found.component}. {plain} What was seen: {found.detail}."


def _tokens(found: Divergence) -> str:
    if found.actual == found.expected:
        text = f"The token there, {found.actual}, is the reference's all the same; what leads to it is not."
    else:
        text = f"The decoder drew token {found.actual}. On the same prefix the reference draws {found.expected}."
    if not math.isnan(found.margin):
        text += (
            f" In the exact race the decoder's token loses by {found.margin:.3g}; rounding explains {found.bound:.3g}."
        )
    if not math.isnan(found.delta_logits):
        text += f" The scores of that position differ by {found.delta_logits:.3g} at most."
    if not math.isnan(found.delta_f_hat):
        far = f"differs by {found.delta_f_hat:.3g} at most" if found.delta_f_hat else "is the same on both sides"
        text += f" The map behind that scale {far}."
    return text


def _prefix(found: Divergence, exhibit: Exhibit) -> list[object]:
    """Say how long both sides agree, and list the last tokens that they agree on."""
    tokens = exhibit.get("tokens_L")
    if tokens is None:
        return []
    actual, expected = tokens.tolist()
    agreed = next((k for k, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b), len(actual))
    if not agreed:
        return [Words("No token comes before it: they part at the very first one.")]
    last = " ".join(map(str, actual[max(0, agreed - NEAR) : agreed]))
    lead = "the last ones " if agreed > NEAR else ""
    return [Words(f"The prefix that agreed: {counted(agreed, 'token')} ({lead}{last}).")]


def _scores(found: Divergence, exhibit: Exhibit) -> list[object]:
    """Return both tokens with their scores and numbers, as far as both sides showed them."""
    sides = {side: exhibit.get(f"{key}.guided_V") for side, key in (("decoder", "actual"), ("reference", "expected"))}
    E_V = exhibit.get("E_V")
    head, columns = ["token"], []
    for side, guided_V in sides.items():
        if guided_V is None:
            continue
        head.append(f"score, {side}")
        columns.append(guided_V.double())
    if E_V is not None and columns:
        head.append("random number E")
        columns.append(E_V.double())
        for side, guided_V in sides.items():
            if guided_V is not None:
                head.append(f"race, {side}")
                columns.append(guided_V.double() - E_V.double().log())
    if not columns:
        return [Words("The decoder shows no scores, so they cannot be set beside each other.")]
    names = {found.expected: "reference's", found.actual: "decoder's"}
    if found.actual == found.expected:
        names = {found.actual: "both sides'"}
    rows = [
        (f"{token} ({whose})", *(f"{float(column[token]):.6g}" for column in columns))
        for token, whose in names.items()
        if 0 <= token < len(columns[0])
    ]
    made: list[object] = [Sheet("Both tokens: scores after guidance, before any filter", head, rows)]
    if E_V is not None:
        made.append(
            Words("A draw is a race: the token with the largest score − log E wins. Both sides meet the same E.")
        )
    return made


def _replays(result: Verification, file: str, number: int | None) -> list[object]:
    made: list[object] = []
    if alone := result.alone:
        made.append(Line(alone, "This line shows it alone:"))
    if file and number is not None:
        line = shlex.join(["sdvar-harness", "replay", file, "--case", str(number)])
        made.append(Line(line, "This line repeats it from the run file, and says whether it still fails:"))
    if not made and result.early:
        made.append(Words("It is of the run as a whole: no image shows it alone."))
    elif not made:
        made.append(Words("No command line made this run, so there is none that repeats it."))
    return made
