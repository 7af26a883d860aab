"""`sdvar-harness mutants`: hunt planted bugs with the laws, and list what caught them."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.commands import _options as options
from harness.commands._options import DTYPES, JUDGED, PLACE
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs

if TYPE_CHECKING:
    import torch

    from harness.mutants import Mutant

FEW = 8  # mutants that are hunted in this process: starting others would take longer than they do
SCOPES = ("first", "family", "all")
FAMILIES = ("acceptance", "batch", "guidance", "masks", "numbers", "positions", "randomness", "reuse", "rules",
            "sensitivity", "state", "streams", "work")  # fmt: skip
PROCESSES = "Processes; 0 = one a GPU of --device cuda; on a CPU one a core, where there are many bugs."


class HuntedBugs(Group, panel=JUDGED):
    """Which bugs are hunted, how and where, and what is written."""

    only: Annotated[
        str, Option("Mutants whose id begins so: masks or masks.corner; several: a,b.", offers=FAMILIES)
    ] = ""
    laws: Annotated[str, Option("first: stop at the first violation; family; all laws.", offers=SCOPES)] = "family"
    examples: Annotated[int, Option("Cases per law.")] = 16
    seed: Annotated[int, Option("Seed of the cases.")] = 0
    device: options.Device = "cpu"
    dtype: Annotated[str, Option("Of the networks where a law does not need float64.", offers=DTYPES, panel=PLACE)] = (
        "float32"
    )
    workers: Annotated[int, Option(PROCESSES, panel=PLACE)] = 0
    cluster: options.Cluster = ""
    json: options.Json = None
    html: options.Html = None
    verbose: options.Verbose = False
    quiet: options.Quiet = False


@command
def mutants(hunted: HuntedBugs) -> None:
    """Hunt planted bugs with the laws; a bug that its family of laws does not catch is a defect of the laws.

    Exit status: 0 all caught, 1 one survived or a law broke on the correct decoder, 2 bad input.
    """
    from harness.laws import LAWS
    from harness.mutants import Hunt, HuntWork, caught_with_mutant, hunting_cases
    from harness.pool import Died, Parallelism, WorkerError, employ
    from harness.report import LongWork, hunt_json, plain_console, say_after, show_hunt, write_asked
    from harness.report.html import check_page, hunt_page
    from harness.rounding import set_precision

    paths = check_outputs({"json": hunted.json, "html": hunted.html}, {})
    check_page(hunted.html)
    chosen, device = _checked(hunted)
    set_precision(False)
    scope = hunted.examples, hunted.seed, hunted.device, hunted.dtype
    hunt, cases = Hunt(hunted.laws, *scope), hunting_cases(*scope)
    checked = [law for law in LAWS if hunted.laws == "all" or law.family in {mutant.family for mutant in chosen}]
    tasks = [("law", law.id) for law in checked] + [("mutant", mutant.id) for mutant in chosen]
    workers = hunted.workers
    if not (workers or hunted.cluster) and hunted.device == "cpu" and len(chosen) >= FEW:
        workers = os.cpu_count() or 1
    crew = employ(Parallelism(workers, hunted.cluster), device, len(tasks))
    threads = 1 if crew.is_elsewhere and hunted.device == "cpu" else 0  # the networks are tiny: a core each
    answers: dict[tuple[str, str], Any] = {}
    with (
        LongWork("laws and mutants", len(tasks), hunted.quiet) as work,
        closing(crew.open(HuntWork(tuple(cases), hunted.laws, threads))) as pool,
    ):
        for task, answer in pool.map(tasks):
            if isinstance(answer, Died):
                raise WorkerError(f"{task[0]}={task[1]}: {answer.why}; pass fewer --workers, or fewer --examples")
            answers[task] = answer
            work.advance(task=task[1])
    hunt.false_alarms = [law for law in checked if answers["law", law.id]]
    hunt.found = [caught_with_mutant(answers["mutant", mutant.id]) for mutant in chosen]
    show_hunt(hunt, plain_console(), hunted.quiet, hunted.verbose)
    say_after(plain_console(), "mutants", hunt.verdict.exit_status, hunted.quiet)
    write_asked(paths, hunted.quiet, json=lambda: hunt_json(hunt), html=lambda: hunt_page(hunt))
    raise typer.Exit(hunt.verdict.exit_status)


def _checked(hunted: HuntedBugs) -> tuple[list[Mutant], torch.device]:
    """Return the mutants whose ids begin as one of the words, and the device. Raises `InputError`."""
    from harness.commands._inputs import check_most, find_device
    from harness.models import parse_mode
    from harness.mutants import MUTANTS

    words = hunted.only.split(",") if hunted.only else [""]
    for name in words:
        if (hunted.only and not name) or not any(mutant.id.startswith(name) for mutant in MUTANTS):
            families = ", ".join(sorted({mutant.family for mutant in MUTANTS}))
            raise InputError("only", name, "names no mutant", f"pass one of {families}, or FAMILY.WORD")
    if hunted.laws not in SCOPES:
        raise InputError("laws", hunted.laws, f"must be one of {', '.join(SCOPES)}", "pass --laws family")
    if hunted.examples < 1:
        raise InputError("examples", hunted.examples, "must be 1 or more", "pass --examples 16")
    check_most("examples", hunted.examples, "16")
    if not 0 <= hunted.seed < 2**63:
        raise InputError("seed", hunted.seed, "must lie in 0..2^63-1", "pass --seed 0")
    parse_mode("dtype", hunted.dtype)
    return [mutant for mutant in MUTANTS if mutant.id.startswith(tuple(words))], find_device(hunted.device)
