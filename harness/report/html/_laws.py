"""The page of a run of laws: what was tried on whose decoder, what is broken, and how to see it again."""

from collections.abc import Sequence

from harness.judge import Verdict
from harness.laws import Scope
from harness.report import CheckRow
from harness.report.html import _page as page

STATES = page.WORDS["laws"]


def laws_page(rows: Sequence[CheckRow], name: str, scope: Scope) -> bytes:
    """Return the page of a run of laws as one HTML file; `name` is the decoder's."""
    word, tone, text = _headline(rows)
    story = [_story(row) for row in rows if row.finding]
    sections = page.sections_of(
        "laws", {"name": name}, result=[_facts(rows)], left=_left(rows), story=story, laws=_sheets(rows)
    )
    made = f"Up to {scope.examples:,} cases a law, seed {scope.seed}, on {scope.device}; networks in "
    made += f"{scope.dtype or 'float64 wherever rounding could decide'}."
    return page.as_html(page.Head(f"laws of {name}", word, tone, text), [*sections, page.origin(made)])


def _headline(rows: Sequence[CheckRow]) -> tuple[str, str, str]:
    """Return word, tone and text of the worst that was met; nothing tried proves nothing."""
    states = [row.state for row in rows]
    if "broken" in states or any(row.fails_no_more for row in rows):
        return Verdict.DEFECT, "bad", "A law is broken, or what is known to fail does not."
    if "known" in states:
        return Verdict.DEFECT, "open", "Something fails, and all of it is known to."
    if "unproven" in states or "held" not in states:
        text = "Nothing wrong was found, and not all is proved: something was never exercised."
        return Verdict.INCONCLUSIVE, "open", text
    return Verdict.IDENTICAL, "good", "Every law that applies to this decoder was exercised, and holds."


def _facts(rows: Sequence[CheckRow]) -> page.Facts:
    laws = [row for row in rows if row.kind == "law"]
    applied = [row for row in laws if row.verdict]
    images = sum(row.examples for row in rows if row.kind != "law")
    return page.Facts([
        ("laws that apply", f"{len(applied):,}", f"of {len(laws):,}"),
        ("held", f"{sum(row.state == 'held' for row in applied):,}", "exercised, and not once broken"),
        ("broken", f"{sum(row.state in ('broken', 'known') for row in applied):,}",
         f"{sum(row.state == 'known' for row in applied):,} of them known"),
        ("unproven", f"{sum(row.state == 'unproven' for row in applied):,}", "never exercised, or mostly refused"),
        ("cases tried", f"{sum(row.examples for row in laws):,}", "small networks, drawn at random"),
        ("images of digits", f"{images:,}", "decoded beside the reference"),
    ])  # fmt: skip


def _left(rows: Sequence[CheckRow]) -> list[object]:
    items = [(f"broken: {row.id}", row.finding) for row in rows if row.state == "broken"]
    items += [(f"unproven: {row.id}", row.why) for row in rows if row.state == "unproven"]
    items += [(f"known to fail: {row.id}", row.known) for row in rows if row.state == "known"]
    items += [(f"known to fail, and does not: {row.id}", row.known) for row in rows if row.fails_no_more]
    return [page.Bullets(items)] if items else []


def _story(row: CheckRow) -> page.Fold:
    parts: list[object] = [
        page.Bullets(
            [("what holds", row.statement), ("what was found", row.finding), ("watches", ", ".join(row.watches))]
        )
    ]
    parts += [page.Line(row.case, "The smallest case:")] if row.case else []
    parts += [page.Line(row.replay, "To see it again:")] if row.replay else []
    return page.Fold(f"{row.id}{' (known)' if row.known else ''}", parts)


def _sheets(rows: Sequence[CheckRow]) -> list[object]:
    cells = [
        (row.id, row.statement, ", ".join(row.watches), STATES[row.state] + (f": {row.why}" if row.why else ""),
         f"{row.examples:,}", page.share(row.exercised, row.examples), f"{row.refused:,}", f"{row.seconds:.1f} s")
        for row in rows
    ]  # fmt: skip
    bad = {k for k, row in enumerate(rows) if row.state == "broken" or row.fails_no_more}
    return [page.sheet_of("laws", cells, bad)] if rows else []
