"""A verification on the terminal: a table, then what went wrong, the verdict last."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.errors import one_line, shortened
from harness.judge.verdict import Verdict
from harness.runs.records import against_of
from harness.runs.repeat import repeat_line
from harness.runs.result import COUNTS, SettingResult, Verification

COLOURS = {
    Verdict.IDENTICAL: "green",
    Verdict.TIE: "green",
    Verdict.CONSISTENT: "green",
    Verdict.DEFECT: "bold red",
    Verdict.INCONCLUSIVE: "yellow",
}


HEADERS = {
    "images": "images",
    "draws": "draws",
    "identical": "iden-\ntical",
    "ties": "ties",
    "wrong_tokens": "wrong\ntokens",
    "unclaimed": "un-\nclaimed",
    "wrong_tensors": "wrong\ntensors",
    "defects": "defects",
}
MOST_CHANGES = 4
PIPE_WIDTH = 144  # rich takes 80 where there is no terminal; a log has no edge
MOST_SHOWN = 2000  # characters of a line: the message of somebody else's crash may have any length


def plain_console() -> Console:
    """Return the console of results: as wide as the terminal, or `PIPE_WIDTH` when piped; text means itself alone."""
    width = None if Console().is_terminal else PIPE_WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str, word: str = "", style: str = "") -> None:
    """Print one line, however long; no control character of a decoder or a file reaches the terminal.

    Args:
        console: of `plain_console`.
        text: whatever it holds.
        word: stands before the text.
        style: of the word.
    """
    line = shortened(one_line(text), MOST_SHOWN)
    console.print(Text.assemble((word, style), " " if word else "", line), soft_wrap=True)


def show(result: Verification, console: Console, quiet: bool) -> None:
    """Print a verification; `quiet` leaves the verdict line only."""
    if not quiet:
        console.print(_table(result))
        if (budget := result.budget) is not None:
            numbers = f"logits {budget.logits:.2g} (rms {budget.logits_rms:.2g}), f_hat {budget.f_hat:.2g}"
            console.print(f"error budget: {numbers}\n  = {budget.source}")
        if result.decode_seconds:
            say(console, f"judging: {result.overhead:.1%} on top of {result.decode_seconds:.1f} s of decodes")
        if result.wall_seconds and result.images:
            say(console, spread(result))
        if result.compared:
            say(console, f"compared with {result.against or 'the reference'}: {', '.join(result.compared)}")
        if result.coverage.rounds:
            say(console, f"covered: {result.coverage}")
        for text in result.changes[:MOST_CHANGES]:
            say(console, f"changed: {text}")
        for name, why in result.not_compared.items():
            say(console, f"not compared: {name} ({why})")
        _say_what_was_found(result, console)
    if not result.is_whole:
        say(console, f"interrupted: {result.images} of {result.plan.images} images are judged")
    say(console, summary(result), result.verdict.value, COLOURS[result.verdict])


def _say_what_was_found(result: Verification, console: Console) -> None:
    """Print distances, why the run is inconclusive, and the first divergence."""
    for setting in result.settings:
        if setting.distances:
            say(console, measured(setting))
    for reason in result.inconclusive:
        say(console, f"inconclusive: {reason}")
    first = result.first_divergence
    if first is not None:
        word = "first tie" if result.verdict in (Verdict.TIE, Verdict.INCONCLUSIVE) else "first defect"
        word = "first difference" if result.against else word
        say(console, f"{word}: {first}")
        if alone := repeated_by(result):
            say(console, f"alone: {alone}")
    for text in result.so_far[:1]:
        say(console, f"so far: {text}")


def spread(result: Verification) -> str:
    """Return one line on who did it: batches, why they are that large, workers, rate."""
    largest = max(task.request.B for task in result.plan.tasks)
    why = f" ({result.about['batch']})" if "batch" in result.about else ""
    return f"batches of {largest}{why}; {result.about.get('workers', 'this process')}; ties certified in " + (
        f"{result.about.get('certifying', '-')}; {result.images / result.wall_seconds:.1f} images a second"
    )


def repeated_by(result: Verification) -> str:
    """Return the command line that shows the first divergence alone; empty where no command line made the run."""
    case, recipe = result.first_case, result.about.get("recipe")
    if case is None or recipe is None or result.early:
        return ""
    row, found = case
    request = next(task.request for task in result.plan.tasks if task.number == row.task)
    plan = result.plan
    other = against_of(result.about.get("terms", {}).get("against"), row.setting)
    return repeat_line(recipe, plan.settings[row.setting], request, found, plan.draft_of(row.setting), other)


def measured(setting: SettingResult) -> str:
    """Return one line on how far a decoder that does not claim the tokens is from sequential decoding."""
    count = len(setting.distances)
    mean = {k: sum(getattr(d, k) for d in setting.distances) / count for k in ("tokens", "f_hat", "pixels")}
    return (
        f"{setting.settings}: {mean['tokens']:.1%} of tokens differ from sequential decoding of the same seed, "
        f"mean |Δf_hat| {mean['f_hat']:.3g}, mean |Δpixel| {mean['pixels']:.3g}"
    )


def summary(result: Verification) -> str:
    """Return the clause that follows the verdict."""
    totals = {name: sum(s.total(name) for s in result.settings) for name in COUNTS}
    totals["defects"] += len(result.early)
    found = [f"{totals['identical']} identical", f"{totals['ties']} ties", f"{totals['wrong_tokens']} wrong tokens"]
    if totals["unclaimed"]:
        found.append(f"{totals['unclaimed']} not claimed")
    return (
        f"contract {result.contract}: {totals['images']} decodes, {totals['draws']} draws compared, "
        f"{', '.join(found)}; {totals['wrong_tensors']} wrong tensors; {totals['defects']} defects"
    )


def _table(result: Verification) -> Table:
    dtype, draft = (str(of).removeprefix("torch.") for of in (result.dtype, result.draft_dtype))
    title = f"{one_line(result.models)} on {result.device}, {dtype}" + ("" if draft == dtype else f" (draft {draft})")
    table = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("setting", no_wrap=True)
    headers = tuple(HEADERS[name] for name in _columns(result))
    for name in (*headers, "target calls\nmean (range)", "accepted\nper round", "seconds", "refer-\nence s"):
        table.add_column(name, justify="right")
    for setting in result.settings:
        table.add_row(*_row(setting, _columns(result)))
    return table


def _columns(result: Verification) -> list[str]:
    """Return the counts that the table shows; a column of unclaimed tokens only where there are any."""
    unclaimed = any(setting.total("unclaimed") for setting in result.settings)
    return [name for name in COUNTS if unclaimed or name != "unclaimed"]


def _row(setting: SettingResult, columns: list[str]) -> list[str]:
    calls = setting.target_calls
    accepted = [count for rounds in setting.accepted_scales for count in rounds]
    counts = [str(setting.total(name)) for name in columns]
    return [
        one_line(f"{setting.settings}{f', {setting.draft}' if setting.draft else ''}"),
        *counts,
        f"{sum(calls) / len(calls):.2f} ({min(calls)}-{max(calls)})" if calls else "-",
        f"{sum(accepted) / len(accepted):.2f}" if accepted else "-",
        f"{setting.seconds:.1f}",
        f"{setting.reference_seconds:.1f}",
    ]
