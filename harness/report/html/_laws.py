"""The pages of laws: what was tried on whose decoder and is broken; and which law catches which planted bug."""

from collections.abc import Sequence

from harness.judge import Verdict
from harness.laws import Scope
from harness.mutants import Caught, Hunt, laws_for
from harness.report import CheckRow, smallest_case, why_survived
from harness.report.html import _page as page

STATES = page.WORDS["laws"]
SCOPES = page.WORDS["scopes"]  # which laws are tried on a bug
CAUGHT, ELSEWHERE, HELD, NOT_TRIED = (page.State(*words) for words in page.PAGES["states"]["hunt"])
LEGEND = "; ".join(f"{state.letter} = {state.word}" for state in (CAUGHT, ELSEWHERE, HELD))


def laws_page(rows: Sequence[CheckRow], name: str, scope: Scope) -> bytes:
    """Return the page of a run of laws as one HTML file; `name` is the decoder's."""
    word, tone, text = _headline(rows)
    laws = [row for row in rows if row.kind == "law"]
    states = [row.state for row in laws]
    facts = page.Facts([
        ("laws that apply", f"{len(laws) - states.count(''):,}", f"of {len(laws):,}"),
        ("held", f"{states.count('held'):,}", "exercised, and not once broken"),
        ("broken", f"{states.count('broken') + states.count('known'):,}", f"{states.count('known'):,} of them known"),
        ("unproven", f"{states.count('unproven'):,}", "never exercised, or mostly refused"),
        ("cases tried", f"{sum(row.examples for row in laws):,}", "small networks, drawn at random"),
        ("images of digits", f"{sum(row.examples for row in rows if row.kind != 'law'):,}",
         "decoded beside the reference"),
    ])  # fmt: skip
    left = [(f"broken: {row.id}", row.finding) for row in rows if row.state == "broken"]
    left += [(f"unproven: {row.id}", row.why) for row in rows if row.state == "unproven"]
    left += [(f"known to fail: {row.id}", row.known) for row in rows if row.state == "known"]
    left += [(f"known to fail, and does not: {row.id}", row.known) for row in rows if row.fails_no_more]
    cells = [
        (row.id, row.statement, ", ".join(row.watches), STATES[row.state] + (f": {row.why}" if row.why else ""),
         f"{row.examples:,}", page.share(row.exercised, row.examples), f"{row.refused:,}", f"{row.seconds:.1f} s")
        for row in rows
    ]  # fmt: skip
    bad = {k for k, row in enumerate(rows) if row.state == "broken" or row.fails_no_more}
    sections = page.sections_of(
        "laws", {"name": name}, result=[facts], left=[page.Bullets(left)] if left else [],
        story=[_story(row) for row in rows if row.finding], laws=[page.sheet_of("laws", cells, bad)] if rows else [],
    )  # fmt: skip
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


def _story(row: CheckRow) -> page.Fold:
    items = [("what holds", row.statement), ("what was found", row.finding), ("watches", ", ".join(row.watches))]
    parts: list[object] = [page.Bullets(items)]
    parts += [page.Line(row.case, "The smallest case:")] if row.case else []
    parts += [page.Line(row.replay, "To see it again:")] if row.replay else []
    return page.Fold(f"{row.id}{' (known)' if row.known else ''}", parts)


def hunt_page(hunt: Hunt) -> bytes:
    word, tone = ("SURVIVED", "bad") if hunt.verdict is Verdict.DEFECT else ("CAUGHT", "good")
    families = page.counted(len({caught.mutant.family for caught in hunt.found}), "family", "families")
    broken = {violation.law.id for each in hunt.found for violation in each.violations}
    facts = page.Facts([
        ("planted bugs", f"{len(hunt.found):,}", f"of {families}"),
        ("caught", f"{len(hunt.found) - len(hunt.survived):,}", "each by its own family"),
        ("survived", f"{len(hunt.survived):,}", "none may"),
        ("false alarms", f"{len(hunt.false_alarms):,}", "laws that the correct decoder breaks"),
        ("laws that caught one", f"{len(broken):,}", SCOPES[hunt.scope]),
    ])  # fmt: skip
    left = [(f"survived: {caught.mutant.id}", why_survived(caught)) for caught in hunt.survived]
    left += [(f"false alarm: {law.id}", "the correct decoder breaks it") for law in hunt.false_alarms]
    bugs = [
        (_name(caught), caught.mutant.change, caught.mutant.origin,
         caught.smallest.found if caught.smallest else "–", smallest_case(caught) or "–",
         f"{caught.seconds:.1f} s" if caught.violations else "–")
        for caught in hunt.found
    ]  # fmt: skip
    bad = {k for k, caught in enumerate(hunt.found) if caught.survived}
    sections = page.sections_of(
        "hunt", {"legend": LEGEND}, result=[facts], left=[page.Bullets(left)] if left else [], matrix=_matrix(hunt),
        bugs=[page.sheet_of("bugs", bugs, bad)], laws=[_laws_tried(hunt)],
    )  # fmt: skip
    scope = (
        f"{hunt.examples:,} cases a law, seed {hunt.seed}, on {hunt.device}; networks in {hunt.dtype} where a law does "
        f"not need float64; asked: {SCOPES[hunt.scope]}."
    )
    head = page.Head("planted bugs", word, tone, page.WORDS["hunt"][word])
    return page.as_html(head, [*sections, page.origin(scope)])


def _matrix(hunt: Hunt) -> list[object]:
    """Return a grid a family; columns are the laws that were tried on any of its bugs."""
    grids: list[object] = []
    for family in dict.fromkeys(caught.mutant.family for caught in hunt.found):
        bugs = [caught for caught in hunt.found if caught.mutant.family == family]
        laws = laws_for(bugs[0].mutant, hunt.scope)[: max(caught.tried for caught in bugs)]
        heads = [law.id.removeprefix(f"{family}.") for law in laws]
        states = {_name(each): [_state(each, k, law.id) for k, law in enumerate(laws)] for each in bugs}
        rows: list[list[str | page.State]] = [[name, *row] for name, row in states.items()]
        grids.append(page.Sheet(f"Family {family}", ["planted bug", *heads], rows, kind="grid upright"))
    return grids


def _state(caught: Caught, number: int, law: str) -> page.State:
    if number >= caught.tried:
        return NOT_TRIED
    if any(violation.law.id == law for violation in caught.own):
        return CAUGHT
    return ELSEWHERE if any(violation.law.id == law for violation in caught.elsewhere) else HELD


def _name(caught: Caught) -> str:
    return f"{caught.mutant.id}{' (survived)' if caught.survived else ''}"


def _laws_tried(hunt: Hunt) -> page.Sheet:
    tried = {law.id: law for caught in hunt.found for law in laws_for(caught.mutant, hunt.scope)[: caught.tried]}
    tried |= {law.id: law for law in hunt.false_alarms}
    alarms = {law.id for law in hunt.false_alarms}
    rows = []
    for name, law in tried.items():
        count = sum(any(v.law.id == name for v in caught.violations) for caught in hunt.found)
        rows.append((f"{name}{' (false alarm)' if name in alarms else ''}", law.statement, f"{count:,}"))
    return page.sheet_of("laws of a hunt", rows, {k for k, name in enumerate(tried) if name in alarms})
