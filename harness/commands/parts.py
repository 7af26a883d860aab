"""`sdvar-harness parts`: the parts of a decoder one by one, by the names of the report."""

from __future__ import annotations

import shlex
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import DRAWN, TIMEOUT_S, Images, Mode, Pair
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs

if TYPE_CHECKING:
    from harness.judge import PartLaw
    from harness.models import ModelPair
    from harness.verification import Question

DRAFT_LEN = 5  # of the decode that a decoder with parts of our own names is asked for
UNREAD = ("option", "stub")  # what was typed and the factory never reads, as its error names it


class PartsDecoder(options.UnderTest):
    """The decoder whose parts are asked, and how long they may take."""

    timeout: options.Timeout = TIMEOUT_S
    allow_write: options.AllowWrite = None
    in_process: options.InProcess = False


class PartsQuestion(Group, panel=DRAWN):
    """What parts are asked about, and what is written."""

    device: options.Device = "cpu"
    seed: Annotated[int, Option("Seed of the tokens or cases that parts are tried on.")] = 0
    labels: options.Labels = "0,1"
    cfg: options.Cfg = 1.5
    locate: options.LocateIfQuick = None
    examples: Annotated[int, Option("Cases a law, for a decoder that shows its parts as `harness` names them.")] = 12
    json: options.Json = None
    verbose: options.Verbose = False
    quiet: options.Quiet = False


@command
def parts(tested: PartsDecoder, networks: Pair, about: PartsQuestion) -> None:
    """Try each part of a decoder, a function or method, alone by the laws that it must keep; and the whole decode.

    Exit status: 0 all hold, 1 one is broken or crashes, 2 bad input, 3 one is not there or was never asked.
    """
    from harness.commands._inputs import load_models, options_tested, requests_for, writable_folders
    from harness.commands.verify import recipe_of
    from harness.decoders import Limits, Terms, start_runner
    from harness.protocol import Settings
    from harness.report import parts_json, parts_verdict, plain_console, say_after, show_parts, write_asked
    from harness.rounding import budget_for
    from harness.runs import recipe_words
    from harness.signals import silence
    from harness.verification import Question, is_published, usual_settings

    paths = check_outputs({"json": about.json}, options.files_of(networks))
    name, pairs = tested.implementation, options_tested(tested)
    pair = load_models(networks, Mode(about.device), about.quiet)
    # parts are asked about what is computed, and not whether anything was drafted
    limits = Limits(tested.timeout, allow_write=writable_folders(tested.allow_write))
    terms = Terms(sequential=True, in_process=tested.in_process, limits=limits)
    settings = Settings(min(DRAFT_LEN, pair.pyramid.S), options=pairs)
    request = requests_for(pair, Images(str(about.seed), about.labels, cfg=about.cfg))[0]
    with silence(about.quiet):
        if is_published(name):
            settings = usual_settings(name, settings, 1)[0]
        question = Question(name, (settings,), (request,), terms)
        decode = of_decode(pair, question, about.locate)
        if is_published(name):
            budget = budget_for(pair)  # before the decoder is built
            with closing(start_runner(pair, name, question.settings, request.B, terms)) as built:
                rows = built.parts(0, request, budget)
        else:
            rows = of_laws(question, about)
        rows.append(decode)
    verdict = parts_verdict(rows)
    show_parts(rows, verdict, plain_console(), about.quiet, about.verbose)
    verify = shlex.join(recipe_words(recipe_of(networks, tested), settings))
    say_after(plain_console(), "parts", verdict.exit_status, about.quiet, verify)
    write_asked(paths, about.quiet, json=lambda: parts_json(rows, verdict))
    raise typer.Exit(verdict.exit_status)


def of_decode(pair: ModelPair, question: Question, locate: bool | None) -> PartLaw:
    """Ask the whole decode what `verify` asks, as one more part: parts may all hold where what joins them is wrong.

    Raises `InputError` for what the factory does not read: laws would refuse it case by case.
    """
    from harness.judge import PartLaw, PartVerdict, Verdict
    from harness.runs import RunFileOptions, take_line
    from harness.verification import answer_question

    recipe = {"implementation": question.decoder} if isinstance(question.decoder, str) else {}
    statement = "The decode keeps its contract, token by token and tensor by tensor, as `verify` judges it."
    try:
        result = answer_question(pair, question, store=RunFileOptions(recipe=recipe))
    except InputError as error:
        if error.name in UNREAD:
            raise
        return PartLaw("decode", "decode.contract", statement, PartVerdict.ABSENT, f"refused: {error}")
    verdicts = {Verdict.DEFECT: PartVerdict.BROKEN, Verdict.INCONCLUSIVE: PartVerdict.UNPROVEN}
    verdict = verdicts.get(result.verdict, PartVerdict.HELD)
    take_line(result, pair, locate)
    finding = "" if verdict is PartVerdict.HELD else str(result.first_divergence or "; ".join(result.inconclusive))
    finding += f"; line: {result.line}" if result.line else ""
    return PartLaw("decode", "decode.contract", statement, verdict, finding)


def of_laws(question: Question, about: PartsQuestion) -> list[PartLaw]:
    """Ask the parts of a decoder that shows them as `Parts` does. Raises `InputError` for what cannot be asked."""
    from harness.commands._inputs import counts
    from harness.laws import CaseList, LawWork, fixed_cases, inspect_parts, part_laws
    from harness.report import LongWork

    counts("examples", str(about.examples), "12")
    cases = CaseList(fixed_cases(about.examples, about.seed))
    limits = None if question.in_process else question.terms.limits
    asked = LawWork(question.decoder, question.settings[0].options, cases, limits)
    with LongWork("laws of parts", len(part_laws()), about.quiet) as work:
        return inspect_parts(asked, work.advance)
