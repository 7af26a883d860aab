"""Replayed defects on the terminal. Promise: a line a case, its answer first."""

from __future__ import annotations

from rich.console import Console

from harness.report.terminal import say
from harness.runs.case import KeptCase, repeat_line
from harness.runs.replay import Answer, Replayed

COLOURS = {Answer.STILL: "bold red", Answer.OTHER: "bold red", Answer.FIXED: "green", Answer.CANNOT: "yellow"}


def say_replayed(console: Console, replayed: Replayed) -> None:
    """Print what came of a case."""
    case, why = replayed.case, f" ({replayed.why})" if replayed.why else ""
    say(console, f"case {case.number}{why}: {case}", replayed.answer.value, COLOURS[replayed.answer])
    if replayed.answer is Answer.OTHER:
        say(console, f"  now: {replayed.found}")


def say_smallest(console: Console, case: KeptCase) -> None:
    """Print the smallest case, and the command line that shows it; of cut networks a bundle alone can."""
    say(console, f"  smallest: {case}")
    recipe = case.about.get("recipe")
    if recipe is not None:
        note = " (with all scales; --bundle keeps the cut)" if case.scales else ""
        line = repeat_line(recipe, case.settings, case.request, case.found, case.draft_noise, case.against)
        say(console, f"  alone{note}: {line}", whole=True)
