"""The pages of many runs: one row a run and verdicts over time; and of two, what changed between them."""

from itertools import pairwise

from harness.judge import Verdict
from harness.report import History, RunSummary, changes_between
from harness.report.html import _page as page
from harness.runs import Verification

LATEST = 40  # runs of a decoder that are shown over time
STATES: dict[str, tuple[str, str]] = page.PAGES["verdicts"]
NOTHING = page.State("final", "", "")


def history_page(history: History) -> bytes:
    runs, worst = history.runs, history.runs[0].verdict
    decoders = page.counted(len({run.decoder for run in runs}), "decoder")
    head = page.Head(
        "runs", worst, page.TONE[Verdict(worst)] if worst in set(Verdict) else "open",
        f"{page.counted(len(runs), 'run')} of {decoders}: {history.counts}.",
        parts=[page.Line(history.command, f"Next: look at the newest {worst}:")],
    )  # fmt: skip
    rows = [[cell or "–" for cell in run.cells] for run in runs]
    bad = {k for k, run in enumerate(runs) if run.verdict == Verdict.DEFECT}
    sheet = page.sheet_of("runs", rows, bad).filled()
    return page.as_html(head, page.sections_of("history", {"latest": LATEST}, runs=[sheet], time=_over_time(history)))


def _over_time(history: History) -> list[object]:
    """Return a grid, a row a decoder on some networks, and where its verdict changed from one run to the next."""
    lanes, changes = list[page.Lane](), list[tuple[str, ...]]()
    ended = sorted((run for run in history.runs if run.ended), key=lambda run: run.ended)
    groups: dict[str, list[RunSummary]] = {}
    for run in ended:
        groups.setdefault(f"{run.decoder or 'unknown'}, {run.models}", []).append(run)
    most = min(LATEST, max(map(len, groups.values()), default=0))
    for name, group in groups.items():
        states = [
            page.State(*STATES.get(run.verdict, STATES["none"]), f"{run.verdict}, {run.cells[3]}")
            for run in group[-LATEST:]
        ]
        lanes.append(page.Lane(name, states + [NOTHING] * (most - len(states)), [f"{len(group):,}"]))
        changes += [
            (run.cells[3], name, f"{before.verdict} to {run.verdict}", f"{before.commit} to {run.commit}", run.cells[0])
            for before, run in pairwise(group)
            if before.verdict != run.verdict
        ]
    if not lanes:
        return []
    grid = page.Grid(
        "Verdicts, a row a decoder", "decoder", [f"{k}" for k in range(1, most + 1)], lanes, ["runs in all"]
    )
    return [grid, *([page.sheet_of("changes of verdict", sorted(changes, reverse=True))] if changes else [])]


def changes_page(runs: tuple[Verification, Verification], names: tuple[str, str]) -> bytes:
    """Return the page of what differs between two runs, whose files are called `names`."""
    changes, (one, other) = changes_between(*runs), (run.verdict for run in runs)
    text = f"{names[0]}: {one}; {names[1]}: {other}. {page.counted(len(changes), 'difference')} between them."
    sheet = [page.sheet_of("differences", changes, one=names[0], other=names[1])] if changes else []
    head = page.Head("two runs", f"{one} → {other}", page.TONE[other], text)
    return page.as_html(head, [page.Section("changes", "What changed", "What is not listed is equal.", sheet)])
