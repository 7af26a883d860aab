"""`sdvar-harness bisect`: which commit a decoder's defect came with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import JUDGED, Images, Mode, Pair
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs, compact

if TYPE_CHECKING:
    from harness.models import ModelPair
    from harness.runs import CommitStore, KeptCase
    from harness.verification import Question


class Commits(Group, panel=JUDGED):
    """Where in the history, and what is written."""

    bad: Annotated[str, Option("A commit that fails.")] = "HEAD"
    good: Annotated[list[str] | None, Option("A commit that does not fail; several times.")] = None
    draft_len: Annotated[str, Option("Scales proposed per round.", panel=options.DECODED)] = "2"
    json: options.Json = None
    quiet: options.Quiet = False


@command
def bisect(tested: options.UnderTest, networks: Pair, images: Images, commits: Commits) -> None:
    """Find the first commit of --checkout on which a decoder fails, and the line that makes the defect.

    Exit status: 0 it is found, 2 bad input, 3 it is one of several, which cannot be judged.
    """
    from harness.commands._inputs import batches_for, integers, load_models, options_tested
    from harness.decoders import Terms
    from harness.protocol import Settings
    from harness.report import plain_console, say, write_asked
    from harness.runs import Bisection, CommitStore, locate_case
    from harness.signals import silence
    from harness.verification import Question, is_own_decoder, is_published

    paths = check_outputs({"json": commits.json}, options.files_of(networks))
    name, console = tested.implementation, plain_console()
    if is_own_decoder(name) or tested.checkout is None:
        rule = "is searched in a repository of somebody's, with a decoder of its own"
        raise InputError("checkout", str(tested.checkout), rule, "pass --implementation NAME and --checkout DIR")
    if not commits.good:
        raise InputError("good", None, "must name a commit that does not fail", "pass --good REV")
    pairs = options_tested(tested if is_published(name) else replace(tested, checkout=None))
    length = "" if is_published(name) else integers("draft_len", commits.draft_len, "2")[0]
    settings = Settings(length, policy="" if is_published(name) else "coupled", options=pairs)
    pair = load_models(networks, Mode(), commits.quiet, name)
    requests, _ = batches_for(pair, images, apart=True)
    with TemporaryDirectory(prefix="sdvar-") as place:
        history = CommitStore(tested.checkout, Path(place))
        good = [history.commit("good", each) for each in commits.good]
        bad = history.commit("bad", commits.bad)
        with silence(commits.quiet):
            question = Question(name, (settings,), tuple(requests), Terms(first_only=True))
            search = Bisection(history, failing(pair, question, history, bad), pair)
            first, *others = search.first_bad(good, bad)
            with history.laid_out(first) as folder:
                line = locate_case(search.at(folder), pair)
            if not isinstance(line, str):  # files are named from the top: the tree is gone when anybody reads it
                top = f"{history.place / first}{os.sep}"
                stack = tuple(each.removeprefix(top) for each in line.stack)
                line = replace(line, file=line.file.removeprefix(top), stack=stack)
        say(console, f"{history.about(first)}, found in {search.runs} runs", "first bad commit:")
        say(console, f"defect: {search.case.defect}")
        say(console, f"line: {line}")
        for each in others:
            say(console, f"may be it, too: {history.about(each)}: {search.skipped[each]}")
    found = {"commit": first, "skipped": search.skipped, "runs": search.runs, "line": getattr(line, "__dict__", line)}
    write_asked(paths, commits.quiet, json=lambda: compact(found))
    raise typer.Exit(3 if others else 0)


def failing(pair: ModelPair, question: Question, history: CommitStore, bad: str) -> KeptCase:
    """Return the first defect at a commit as a case. Raises `InputError` where no decode shows one."""
    from harness.runs import RunFileOptions
    from harness.verification import answer_question

    with history.laid_out(bad) as folder:
        settings = question.settings[0]
        moved = tuple((name, str(folder) if name == "checkout" else value) for name, value in settings.options)
        asked = replace(question, settings=(replace(settings, options=moved),))
        case = answer_question(pair, asked, store=RunFileOptions(recipe={"implementation": str(question.decoder)})).case
    if case is None:
        raise InputError("bad", bad[:12], "shows no defect of a decode", "pass one that fails, or more --seeds")
    return case
