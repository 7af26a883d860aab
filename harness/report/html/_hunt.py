"""The page of a hunt for planted bugs: which law catches which bug, and what is left."""

from harness.judge import Verdict
from harness.mutants import Caught, Hunt, laws_for
from harness.report import first_catch, smallest_case, why_survived
from harness.report.html._page import Bullets, Facts, Grid, Head, Lane, Section, Sheet, State, as_html, counted, origin
from harness.report.html._words import WORDS

SCOPES = WORDS["scopes"]  # which laws are tried
CAUGHT = State("caught", "C", "caught by a law of its own family")
ELSEWHERE = State("elsewhere", "e", "caught by a law of another family")
HELD = State("held", "·", "the law was tried and holds")
NOT_TRIED = State("final", "", "not tried")
LEGEND = "; ".join(f"{state.letter} = {state.word}" for state in (CAUGHT, ELSEWHERE, HELD))


def hunt_page(hunt: Hunt) -> bytes:
    """Return the page of a hunt as one HTML file."""
    bad = hunt.verdict is Verdict.DEFECT
    word, tone = ("SURVIVED", "bad") if bad else ("CAUGHT", "good")
    text = (
        "The tests miss something: a planted bug was not caught, or a law broke on the correct decoder."
        if bad else "Every planted bug was caught by a law of its family, and no law broke on the correct decoder."
    )  # fmt: skip
    return as_html(Head("planted bugs", word, tone, text), _sections(hunt))


def _sections(hunt: Hunt) -> list[Section]:
    return [
        Section("result", "Result", "The right decoder with one thing changed at a time: do the laws see it?",
                [_facts(hunt)]),
        Section("left", "What went wrong", "", _left(hunt)),
        Section("matrix", "Which law catches which bug", f"A row a bug, a column a law. {LEGEND}; empty = not tried.",
                _matrix(hunt)),
        Section("bugs", "Every bug", "", [_bugs(hunt)]),
        Section("laws", "Every law", "", [_laws(hunt)]),
        origin(f"{hunt.examples:,} cases a law, seed {hunt.seed}, on {hunt.device}; networks in {hunt.dtype} where a "
                 f"law does not need float64; asked: {SCOPES[hunt.scope]}."),
    ]  # fmt: skip


def _facts(hunt: Hunt) -> Facts:
    families = counted(len({caught.mutant.family for caught in hunt.found}), "family", "families")
    caught = len(hunt.found) - len(hunt.survived)
    broken = {violation.law.id for each in hunt.found for violation in each.violations}
    return Facts([
        ("planted bugs", f"{len(hunt.found):,}", f"of {families}"),
        ("caught", f"{caught:,}", "each by its own family"),
        ("survived", f"{len(hunt.survived):,}", "none may"),
        ("false alarms", f"{len(hunt.false_alarms):,}", "laws that the correct decoder breaks"),
        ("laws that caught one", f"{len(broken):,}", SCOPES[hunt.scope]),
    ])  # fmt: skip


def _left(hunt: Hunt) -> list[object]:
    items = [(f"survived: {caught.mutant.id}", why_survived(caught)) for caught in hunt.survived]
    items += [(f"false alarm: {law.id}", "the correct decoder breaks it") for law in hunt.false_alarms]
    return [Bullets(items)] if items else []


def _matrix(hunt: Hunt) -> list[object]:
    """Return a grid a family; columns are the laws that were tried on any of its bugs."""
    grids: list[object] = []
    for family in dict.fromkeys(caught.mutant.family for caught in hunt.found):
        bugs = [caught for caught in hunt.found if caught.mutant.family == family]
        laws = laws_for(bugs[0].mutant, hunt.scope)[: max(caught.tried for caught in bugs)]
        heads = [law.id.removeprefix(f"{family}.") for law in laws]
        rows = [Lane(_name(each), [_state(each, k, law.id) for k, law in enumerate(laws)]) for each in bugs]
        grids.append(Grid(f"Family {family}", "planted bug", heads, rows, upright=True))
    return grids


def _state(caught: Caught, number: int, law: str) -> State:
    if number >= caught.tried:
        return NOT_TRIED
    if any(violation.law.id == law for violation in caught.own):
        return CAUGHT
    return ELSEWHERE if any(violation.law.id == law for violation in caught.elsewhere) else HELD


def _name(caught: Caught) -> str:
    return f"{caught.mutant.id}{' (survived)' if caught.survived else ''}"


def _bugs(hunt: Hunt) -> Sheet:
    rows = [
        (_name(caught), caught.mutant.change, caught.mutant.origin, first_catch(caught),
         caught.smallest.found if caught.smallest else "–", smallest_case(caught) or "–",
         f"{caught.seconds:.1f} s" if caught.violations else "–")
        for caught in hunt.found
    ]  # fmt: skip
    head = ("bug", "what it changes", "where such a bug comes from", "first caught by", "what a law saw",
            "smallest failing example", "to the first violation")  # fmt: skip
    bad = frozenset(k for k, caught in enumerate(hunt.found) if caught.survived)
    sheet = Sheet("Planted bugs, with the smallest example that their own family found", head, rows, len(head) - 1, bad)
    return sheet if any(caught.verified for caught in hunt.found) else sheet.without(["first caught by"])


def _laws(hunt: Hunt) -> Sheet:
    tried = {law.id: law for caught in hunt.found for law in laws_for(caught.mutant, hunt.scope)[: caught.tried]}
    tried |= {law.id: law for law in hunt.false_alarms}
    alarms = {law.id for law in hunt.false_alarms}
    rows = []
    for name, law in tried.items():
        count = sum(any(v.law.id == name for v in caught.violations) for caught in hunt.found)
        rows.append((f"{name}{' (false alarm)' if name in alarms else ''}", law.statement, f"{count:,}"))
    bad = frozenset(k for k, name in enumerate(tried) if name in alarms)
    return Sheet("Laws that were tried, and how many of these bugs each catches", ("law", "what holds", "bugs"), rows,
                 2, bad)  # fmt: skip
