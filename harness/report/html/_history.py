"""The pages of many runs: one row a run and verdicts over time; and of two, what changed between them."""

from itertools import pairwise

from harness.judge import Verdict
from harness.report import History, RunSummary, changes_between
from harness.report.html._page import Grid, Head, Lane, Line, Section, Sheet, State, as_html, counted
from harness.report.html._words import TONE
from harness.runs import Verification

LATEST = 40  # runs of a decoder that are shown over time
STATES = {
    "IDENTICAL": ("accepted", "="), "TIE": ("accepted", "t"), "CONSISTENT": ("bonus", "c"),
    "DEFECT": ("corrected", "D"),
}  # fmt: skip
OTHERS, NOTHING = ("rejected", "?"), State("final", "", "")
LEGEND = "= identical, t tie, c consistent, D defect, ? no verdict"
HEAD = ("run", "verdict", "where it first differs", "ended", "decoder", "networks", "images", "wrong tokens")


def history_page(history: History) -> bytes:
    """Return the page of several runs as one HTML file."""
    runs, worst = history.runs, history.runs[0].verdict
    decoders = counted(len({run.decoder for run in runs}), "decoder")
    head = Head(
        "runs", worst, TONE[Verdict(worst)] if worst in set(Verdict) else "open",
        f"{counted(len(runs), 'run')} of {decoders}: {history.counts}.",
        parts=[Line(history.command, "Next: look at the worst:")],
    )  # fmt: skip
    rows = [[cell or "–" for cell in run.cells] for run in runs]
    bad = frozenset(k for k, run in enumerate(runs) if run.verdict == Verdict.DEFECT)
    return as_html(head, [
        Section("runs", "Every run", "The worst first, then the newest.",
                [Sheet("Runs", HEAD, rows, 6, bad).filled()]),
        Section("time", "Verdicts over time",
                f"The last {LATEST} runs of every decoder on the same networks, from old to new. {LEGEND}.",
                _over_time(history)),
    ])  # fmt: skip


def _over_time(history: History) -> list[object]:
    """Return a grid, a row a decoder on some networks, and where its verdict changed from one run to the next."""
    lanes, changes = list[Lane](), list[tuple[str, ...]]()
    ended = sorted((run for run in history.runs if run.ended), key=lambda run: run.ended)
    groups: dict[str, list[RunSummary]] = {}
    for run in ended:
        groups.setdefault(f"{run.decoder or 'unknown'}, {run.models}", []).append(run)
    most = min(LATEST, max(map(len, groups.values()), default=0))
    for name, group in groups.items():
        states = [State(*STATES.get(run.verdict, OTHERS), f"{run.verdict}, {run.cells[3]}") for run in group[-LATEST:]]
        lanes.append(Lane(name, states + [NOTHING] * (most - len(states)), [f"{len(group):,}"]))
        changes += [
            (run.cells[3], name, f"{before.verdict} to {run.verdict}", f"{before.commit} to {run.commit}", run.cells[0])
            for before, run in pairwise(group)
            if before.verdict != run.verdict
        ]
    if not lanes:
        return []
    grid = Grid("Verdicts, a row a decoder", "decoder", [f"{k}" for k in range(1, most + 1)], lanes, ["runs in all"])
    head = ("ended", "decoder", "verdict", "commit", "run")
    return [grid, *([Sheet("Where a verdict changed", head, sorted(changes, reverse=True), 5)] if changes else [])]


def changes_page(runs: tuple[Verification, Verification], names: tuple[str, str]) -> bytes:
    """Return the page of what differs between two runs, whose files are called `names`."""
    changes, (one, other) = changes_between(*runs), (run.verdict for run in runs)
    text = f"{names[0]}: {one}; {names[1]}: {other}. {counted(len(changes), 'difference')} between them."
    sheet = [Sheet("What differs", ("what", *names), changes, 3)] if changes else []
    head = Head("two runs", f"{one} → {other}", TONE[other], text)
    return as_html(head, [Section("changes", "What changed", "What is not listed is equal.", sheet)])
