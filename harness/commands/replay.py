"""`sdvar-harness replay`: repeat recorded defects, reduce them, send them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from harness.commands import options
from harness.errors import InputError
from harness.files import check_outputs, check_readable
from harness.models.pair import ModelPair
from harness.report.progress import LongWork
from harness.report.replays import say_replayed, say_smallest
from harness.report.terminal import plain_console
from harness.rounding.budget import SHIPPED
from harness.runs.case import MOST_CASES, KeptCase, cases_of, is_bundle, of_checkouts, read_bundle, write_bundle
from harness.runs.replay import Answer, Replayed, replay_case, shrink_case
from harness.signals import silence


def replay(
    file: Annotated[Path, typer.Argument(help="File of verify --run, or of replay --bundle.")],
    case: Annotated[int, typer.Option(help="Number of one case; -1 = all, sixteen at most.")] = -1,
    shrink: Annotated[bool, typer.Option("--shrink", help="Reduce a case that fails, and state the smallest.")] = False,
    bundle: Annotated[Path | None, typer.Option(help="Write one case to this file, to be sent.")] = None,
    draft: options.Draft = None,
    target: options.Target = None,
    vae: options.Vae = None,
    checkout: Annotated[Path | None, typer.Option(help="Where the published code is now.")] = None,
    against_checkout: Annotated[Path | None, typer.Option(help="Where the code that it was judged against is.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N. [default: the recorded one, or cpu]")] = "",
    budgets: Annotated[Path, typer.Option(help="File of `calibrate`; modes that it lacks are measured.")] = SHIPPED,
    quiet: options.Quiet = False,
) -> None:
    """Repeat recorded defects: STILL FAILS, FIXED, OTHER DEFECT, or CANNOT REPRODUCE and why.

    Exit status: 0 all fixed, 1 a defect, 2 bad input, 3 one cannot be reproduced.
    """
    outputs = check_outputs({"bundle": bundle}, {"file": file, "draft": draft, "target": target, "vae": vae})
    check_readable(budgets, "budgets", "pass a file of sdvar-harness calibrate", "is not there")
    cases, console = [of_checkouts(one, (checkout, against_checkout)) for one in chosen(file, case)], plain_console()
    if bundle is not None and len(cases) != 1:
        raise InputError("bundle", str(bundle), f"holds one case, and there are {len(cases)}", "pass --case 0")
    given = {"draft": draft, "target": target, "vae": vae}
    answers: list[Replayed] = []
    with LongWork("cases", len(cases), quiet) as work:
        for one in cases:
            with silence(quiet):
                found, models = repeated(one, given, device, budgets)
            answers.append(found)
            say_replayed(console, found)
            smallest = one
            if shrink and models is not None and found.answer is Answer.STILL:
                with silence(quiet):
                    smallest = shrink_case(one, models, budgets)
                say_smallest(console, smallest)
            if "bundle" in outputs:
                if models is None:
                    raise InputError("bundle", str(bundle), f"cannot be made here: {found.why}", "see the reason")
                write_bundle(smallest, models, outputs["bundle"])
            work.advance()
    statuses = {found.answer.exit_status for found in answers}
    raise typer.Exit(1 if 1 in statuses else max(statuses, default=0))


def chosen(file: Path, number: int) -> list[KeptCase]:
    """Return the cases of a file, or one of them. Raises `InputError` where there is none of that number."""
    cases = [read_bundle(file)] if is_bundle(file) else cases_of(file)
    if number >= len(cases) or number < -1:
        raise InputError("case", number, f"is none of the {len(cases)} cases of {file}", "drop --case for all")
    return cases[:MOST_CASES] if number < 0 else [cases[number]]


def repeated(
    case: KeptCase, given: Mapping[str, Path | None], device: str, budgets: Path
) -> tuple[Replayed, ModelPair | None]:
    """Repeat one case on the networks that its run was of, wherever they are now."""
    recipe = case.about.get("recipe")
    if recipe is None:
        return Replayed(case, Answer.CANNOT, "the run was not made by the command line: its networks are unknown"), None
    files = {name: path or (Path(recipe[name]) if name in recipe else None) for name, path in given.items()}
    networks = options.Networks(
        recipe.get("models", "digits"),
        **files,
        patch_nums=recipe.get("patch_nums", ""),
        draft_noise=float(recipe["draft_noise"]) if "draft_noise" in recipe else None,
    )
    where = device or (recipe.get("device", "cpu") if torch.cuda.is_available() else "cpu")
    dtypes = recipe.get("dtype", "float32"), recipe.get("draft_dtype", "")
    try:
        models = options.load_models(networks, options.Mode(where, "tf32" in recipe, *dtypes))
    except InputError as error:
        return Replayed(case, Answer.CANNOT, f"the networks cannot be had: {error}"), None
    return replay_case(case, models, budgets), models
