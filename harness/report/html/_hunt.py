"""The page of a hunt for planted bugs: which law catches which bug, and what is left."""

from harness.judge import Verdict
from harness.mutants import Caught, Hunt, laws_for
from harness.report import smallest_case, why_survived
from harness.report.html import _page as page

SCOPES = page.WORDS["scopes"]  # which laws are tried
CAUGHT, ELSEWHERE, HELD, NOT_TRIED = (page.State(*words) for words in page.PAGES["states"]["hunt"])
LEGEND = "; ".join(f"{state.letter} = {state.word}" for state in (CAUGHT, ELSEWHERE, HELD))


def hunt_page(hunt: Hunt) -> bytes:
    word, tone = ("SURVIVED", "bad") if hunt.verdict is Verdict.DEFECT else ("CAUGHT", "good")
    sections = page.sections_of(
        "hunt", {"legend": LEGEND}, result=[_facts(hunt)], left=_left(hunt), matrix=_matrix(hunt), bugs=[_bugs(hunt)],
        laws=[_laws(hunt)],
    )  # fmt: skip
    scope = (
        f"{hunt.examples:,} cases a law, seed {hunt.seed}, on {hunt.device}; networks in {hunt.dtype} where a law does "
        f"not need float64; asked: {SCOPES[hunt.scope]}."
    )
    head = page.Head("planted bugs", word, tone, page.WORDS["hunt"][word])
    return page.as_html(head, [*sections, page.origin(scope)])


def _facts(hunt: Hunt) -> page.Facts:
    families = page.counted(len({caught.mutant.family for caught in hunt.found}), "family", "families")
    broken = {violation.law.id for each in hunt.found for violation in each.violations}
    return page.Facts([
        ("planted bugs", f"{len(hunt.found):,}", f"of {families}"),
        ("caught", f"{len(hunt.found) - len(hunt.survived):,}", "each by its own family"),
        ("survived", f"{len(hunt.survived):,}", "none may"),
        ("false alarms", f"{len(hunt.false_alarms):,}", "laws that the correct decoder breaks"),
        ("laws that caught one", f"{len(broken):,}", SCOPES[hunt.scope]),
    ])  # fmt: skip


def _left(hunt: Hunt) -> list[object]:
    items = [(f"survived: {caught.mutant.id}", why_survived(caught)) for caught in hunt.survived]
    items += [(f"false alarm: {law.id}", "the correct decoder breaks it") for law in hunt.false_alarms]
    return [page.Bullets(items)] if items else []


def _matrix(hunt: Hunt) -> list[object]:
    """Return a grid a family; columns are the laws that were tried on any of its bugs."""
    grids: list[object] = []
    for family in dict.fromkeys(caught.mutant.family for caught in hunt.found):
        bugs = [caught for caught in hunt.found if caught.mutant.family == family]
        laws = laws_for(bugs[0].mutant, hunt.scope)[: max(caught.tried for caught in bugs)]
        heads = [law.id.removeprefix(f"{family}.") for law in laws]
        rows = [page.Lane(_name(each), [_state(each, k, law.id) for k, law in enumerate(laws)]) for each in bugs]
        grids.append(page.Grid(f"Family {family}", "planted bug", heads, rows, upright=True))
    return grids


def _state(caught: Caught, number: int, law: str) -> page.State:
    if number >= caught.tried:
        return NOT_TRIED
    if any(violation.law.id == law for violation in caught.own):
        return CAUGHT
    return ELSEWHERE if any(violation.law.id == law for violation in caught.elsewhere) else HELD


def _name(caught: Caught) -> str:
    return f"{caught.mutant.id}{' (survived)' if caught.survived else ''}"


def _bugs(hunt: Hunt) -> page.Sheet:
    rows = [
        (_name(caught), caught.mutant.change, caught.mutant.origin,
         caught.smallest.found if caught.smallest else "–", smallest_case(caught) or "–",
         f"{caught.seconds:.1f} s" if caught.violations else "–")
        for caught in hunt.found
    ]  # fmt: skip
    return page.sheet_of("bugs", rows, {k for k, caught in enumerate(hunt.found) if caught.survived})


def _laws(hunt: Hunt) -> page.Sheet:
    tried = {law.id: law for caught in hunt.found for law in laws_for(caught.mutant, hunt.scope)[: caught.tried]}
    tried |= {law.id: law for law in hunt.false_alarms}
    alarms = {law.id for law in hunt.false_alarms}
    rows = []
    for name, law in tried.items():
        count = sum(any(v.law.id == name for v in caught.violations) for caught in hunt.found)
        rows.append((f"{name}{' (false alarm)' if name in alarms else ''}", law.statement, f"{count:,}"))
    return page.sheet_of("laws of a hunt", rows, {k for k, name in enumerate(tried) if name in alarms})
