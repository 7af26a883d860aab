"""`sdvar-harness replay`: repeat recorded defects, reduce them, send them."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import BUDGETS, JUDGED, PLACE, TESTED, WRITTEN, Mode, Networks
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs, check_readable

if TYPE_CHECKING:
    from harness.models import ModelPair
    from harness.runs import KeptCase, Replayed


class ReplayCases(Group, panel=WRITTEN):
    """Which recorded defects, what is done with them, and where the networks and the decoders are now."""

    file: Annotated[Path, Option("File of verify --run, or of replay --bundle.", argument=True)]
    case: Annotated[int, Option("Number of one case; -1 = all, sixteen at most.", panel=JUDGED)] = -1
    shrink: Annotated[bool, Option("Reduce a case that fails, and state the smallest.", panel=JUDGED)] = False
    locate: options.Locate = False
    bundle: Annotated[Path | None, Option("Write one case to this file, to be sent.")] = None
    quiet: options.Quiet = False
    draft: options.Draft = None
    target: options.Target = None
    vae: options.Vae = None
    checkout: Annotated[Path | None, Option("Where the published code is now.", panel=TESTED)] = None
    against_checkout: Annotated[Path | None, Option("Where the code that it was judged against is.", panel=TESTED)] = (
        None
    )
    in_process: Annotated[bool, Option("Run the decoder in this process: for a debugger.", panel=TESTED)] = False
    trust: Annotated[bool, Option("Run the code that somebody else's file names.", panel=TESTED)] = False
    device: Annotated[str, Option("cpu, cuda or cuda:N.", shown="the recorded one, or cpu", panel=PLACE)] = ""
    budgets: options.Budgets = BUDGETS


@command
def replay(cases: ReplayCases) -> None:
    """Repeat recorded defects: STILL FAILS, FIXED, OTHER DEFECT, or CANNOT REPRODUCE and why.

    Exit status: 0 all fixed, 1 a defect, 2 bad input, 3 one cannot be reproduced.
    """
    from harness.report import LongWork, plain_console, say, say_after, say_replayed, say_smallest
    from harness.runs import Answer, check_trusted, locate_case, of_checkouts, shrink_case, write_bundle
    from harness.signals import silence

    paths = check_outputs({"bundle": cases.bundle}, {"file": cases.file, **options.files_of(cases)})
    check_readable(cases.budgets, "budgets", "pass a file of sdvar-harness calibrate", "is not there")
    checkouts = cases.checkout, cases.against_checkout
    recorded, console = chosen_cases(cases), plain_console()
    for one in recorded:
        if not (one.is_own or cases.trust):
            check_trusted(cases.file, one.code, checkouts)
    chosen = [replace(of_checkouts(one, checkouts), in_process=cases.in_process) for one in recorded]
    if cases.bundle is not None and len(chosen) != 1:
        raise InputError("bundle", str(cases.bundle), f"holds one case, and there are {len(chosen)}", "pass --case 0")
    if not chosen:
        say(console, f"no defect in {cases.file}: nothing to repeat")
    answers = Counter[Answer]()
    with LongWork("cases", len(chosen), cases.quiet) as work:
        for one in chosen:
            with silence(cases.quiet):
                replayed, models = repeated(one, cases)
            answers[replayed.answer] += 1
            say_replayed(console, replayed)
            smallest = one
            if cases.shrink and models is not None and replayed.answer is Answer.STILL:
                with silence(cases.quiet):
                    smallest = shrink_case(one, models, cases.budgets)
                say_smallest(console, smallest)
            if cases.locate and models is not None and replayed.answer.exit_status == 1:
                with silence(cases.quiet):
                    line = locate_case(smallest, models)
                say(console, f"  line: {line}")
            if "bundle" in paths:
                if models is None:
                    rule = f"cannot be made here: {replayed.why}"
                    raise InputError("bundle", str(cases.bundle), rule, "see the reason")
                write_bundle(smallest, models, paths["bundle"])
                say(console, f"wrote {paths['bundle']}", whole=True)
            work.advance()
    if len(chosen) > 1 and not cases.quiet:
        say(console, ", ".join(f"{count} of {len(chosen)} {answer.value}" for answer, count in answers.items()))
    statuses = {answer.exit_status for answer in answers}
    status = 1 if 1 in statuses else max(statuses, default=0)
    if chosen:
        can = {"--locate names the line of code": cases.locate, "--shrink names the smallest case": cases.shrink}
        more = ", ".join(what for what, is_asked in can.items() if not is_asked)
        say_after(console, "replay", status, cases.quiet, asked_again(chosen[-1]), f"; {more}" * bool(more))
    raise typer.Exit(status)


def asked_again(case: KeptCase) -> str:
    """Return the command line that asks what the case's run asked, of its decoder where that is now."""
    from harness.runs import recipe_words

    words = list[str]()
    command = case.record.command
    asked = iter([part for word in command for part in (word.split("=", 1) if word[:2] == "--" else [word])])
    for word in asked:
        # written for that run; a key and a challenge are a certificate's
        if word in ("--run", "--json", "--html", "--certificate", "--key", "--challenged"):
            next(asked, None)
        elif word == "--checkout":
            next(asked, None)
            words += [word, case.settings.option("checkout")]
        elif word not in ("--resume", "--quiet"):
            words.append(word)
    # of a run that was not made by `verify`, its decoder at least
    whole = words[:1] == ["verify"] and "--against-checkout" not in words
    return shlex.join(["sdvar-harness", *words] if whole else recipe_words(case.record.recipe or {}, case.settings))


def chosen_cases(cases: ReplayCases) -> list[KeptCase]:
    """Return the cases of a file, or one of them. Raises `InputError` where there is none of that number."""
    from harness.runs import MOST_CASES, cases_of, is_bundle, read_bundle

    recorded = [read_bundle(cases.file)] if is_bundle(cases.file) else cases_of(cases.file)
    if not -1 <= cases.case < len(recorded):
        rule = f"is none of the {len(recorded)} cases of {cases.file}"
        raise InputError("case", cases.case, rule, "drop --case for all")
    return recorded[:MOST_CASES] if cases.case < 0 else [recorded[cases.case]]


def repeated(case: KeptCase, now: ReplayCases) -> tuple[Replayed, ModelPair | None]:
    """Repeat one case on the networks that its run was of, wherever they are now."""
    import torch

    from harness.commands._inputs import load_models
    from harness.runs import Answer, Replayed, replay_case

    recipe = case.record.recipe
    if recipe is None:
        return Replayed(case, Answer.CANNOT, "the run was not made by the command line: its networks are unknown"), None
    draft, target, vae = (getattr(now, name) or recipe.get(name) for name in options.FILES)
    noise = float(recipe["draft_noise"]) if "draft_noise" in recipe else None
    told = recipe.get("patch_nums", ""), recipe.get("heads", ""), recipe.get("schedule", "")
    networks = Networks(recipe.get("models", "digits"), draft, target, vae, *told, draft_noise=noise)
    device = now.device or (recipe.get("device", "cpu") if torch.cuda.is_available() else "cpu")
    mode = Mode(device, "tf32" in recipe, recipe.get("dtype", "float32"), recipe.get("draft_dtype", ""))
    try:
        models = load_models(networks, mode, quiet=True, decoder=case.implementation)
    except InputError as error:
        return Replayed(case, Answer.CANNOT, f"the networks cannot be had: {error}"), None
    return replay_case(case, models, now.budgets), models
