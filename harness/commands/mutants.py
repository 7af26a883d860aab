"""`sdvar-harness mutants`: hunt planted bugs with the laws, and list what caught them."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from harness.commands import options
from harness.commands.listed import check_most
from harness.errors import InputError
from harness.files import check_outputs, write_whole
from harness.laws.case import DTYPES
from harness.laws.catalogue import LAWS
from harness.mutants.catalogue import MUTANTS
from harness.mutants.hunt import SCOPES, Hunt, HuntWork, hunting_cases, received
from harness.mutants.mutant import Mutant
from harness.pool.employ import Execution, employ
from harness.pool.workers import Died, WorkerError
from harness.report.html.page import check_page
from harness.report.mutants import hunt_json, hunt_markdown, show_hunt
from harness.report.progress import LongWork
from harness.report.tables import replaced_parts
from harness.report.terminal import plain_console
from harness.rounding.precision import set_precision

FEW = 8  # mutants that are hunted in this process: starting others would take longer than they do


def mutants(
    only: Annotated[str, typer.Option(help="Mutants whose id begins so: masks or masks.corner; several: a,b.")] = "",
    laws: Annotated[str, typer.Option(help="first: stop at the first violation; family; all laws.")] = "family",
    examples: Annotated[int, typer.Option(help="Cases per law.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the cases.")] = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the default verify on each, too: which stage catches it first?")
    ] = False,
    into: Annotated[Path | None, typer.Option(help="Markdown file: replace its table between the markers.")] = None,
    device: options.Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the networks where a law does not need float64.")] = "float32",
    workers: Annotated[
        int,
        typer.Option(help="Processes; 0 = one a GPU of --device cuda; on a CPU one a core, where there are many bugs."),
    ] = 0,
    cluster: options.Cluster = "",
    json: options.Json = None,
    verbose: options.Verbose = False,
    html: options.Html = None,
    quiet: options.Quiet = False,
) -> None:
    """Hunt planted bugs with the laws; a bug that its family of laws does not catch is a defect of the laws.

    Exit status: 0 all caught, 1 one survived or a law broke on the correct decoder, 2 bad input.
    """
    outputs = check_outputs({"json": json, "html": html, "into": into}, {})
    check_page(html)
    if into is not None:
        replaced_parts(into, {"mutants": ""})
    made, chosen = Hunt(laws, examples, seed, device, dtype), chosen_mutants(only)
    _check(made)
    set_precision(False)
    tried = hunting_cases(examples, seed, device, dtype)
    checked = [law for law in LAWS if laws == "all" or law.family in {mutant.family for mutant in chosen}]
    tasks = [("law", law.id) for law in checked] + [("mutant", mutant.id) for mutant in chosen]
    if not (workers or cluster) and device == "cpu" and len(chosen) >= FEW:
        workers = os.cpu_count() or 1
    crew = employ(Execution(workers, cluster), torch.device(device), len(tasks))
    threads = 1 if crew.is_elsewhere and device == "cpu" else 0  # the networks are tiny: a core each
    found: dict[tuple[str, str], Any] = {}
    with (
        LongWork("laws and mutants", len(tasks), quiet) as work,
        closing(crew.open(HuntWork(tuple(tried), laws, verify, threads))) as pool,
    ):
        for task, answer in pool.map(tasks):
            if isinstance(answer, Died):
                raise WorkerError(f"{task[0]}={task[1]}: {answer.why}; pass fewer --workers, or fewer --examples")
            found[task] = answer
            work.advance(said=task[1])
    made.false_alarms = [law for law in checked if found["law", law.id]]
    made.found = [received(found["mutant", mutant.id]) for mutant in chosen]
    show_hunt(made, plain_console(), quiet, verbose)
    if "json" in outputs:
        write_whole(outputs["json"], hunt_json(made))
    if "html" in outputs:
        from harness.report.html.hunt import hunt_page  # noqa: PLC0415  # Jinja2 is asked for where a page is made

        write_whole(outputs["html"], hunt_page(made))
    if "into" in outputs:
        write_whole(outputs["into"], replaced_parts(outputs["into"], {"mutants": hunt_markdown(made)}).encode())
    raise typer.Exit(made.verdict.exit_status)


def chosen_mutants(only: str) -> list[Mutant]:
    """Return the mutants whose ids begin as one of the words. Raises `InputError` for a word that names none."""
    wanted = only.split(",") if only else [""]
    for name in wanted:
        if (only and not name) or not any(mutant.id.startswith(name) for mutant in MUTANTS):
            families = ", ".join(sorted({mutant.family for mutant in MUTANTS}))
            raise InputError("only", name, "names no mutant", f"pass one of {families}, or FAMILY.WORD")
    return [mutant for mutant in MUTANTS if mutant.id.startswith(tuple(wanted))]


def _check(made: Hunt) -> None:
    """Refuse what cannot be hunted with. Raises `InputError`."""
    if made.scope not in SCOPES:
        raise InputError("laws", made.scope, f"must be one of {', '.join(SCOPES)}", "pass --laws family")
    if made.examples < 1:
        raise InputError("examples", made.examples, "must be 1 or more", "pass --examples 16")
    check_most("examples", made.examples, "16")
    if not 0 <= made.seed < 2**63:
        raise InputError("seed", made.seed, "must lie in 0..2^63-1", "pass --seed 0")
    options.find_dtype("dtype", made.dtype, DTYPES)
    try:
        options.find_device(made.device)
    except InputError as error:
        raise InputError("device", made.device, "is not there", error.remedy) from None
