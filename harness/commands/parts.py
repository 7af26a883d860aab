"""`sdvar-harness parts`: the parts of a decoder one by one, by the names of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import options
from harness.commands.options import DRAWN, TIMEOUT_S, WRITTEN, Images, Mode, Pair
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs, write_whole

if TYPE_CHECKING:
    from harness.commands.inputs import Decoder
    from harness.decoders.terms import Terms
    from harness.judge.part_law import PartLaw
    from harness.models.pair import ModelPair


@dataclass(frozen=True)
class PartsDecoder(options.UnderTest):
    """The decoder whose parts are asked, and how long they may take."""

    timeout: Annotated[float, Option("Seconds for all parts, in the decoder's own process.")] = TIMEOUT_S
    in_process: Annotated[bool, Option("Ask them in this process: for a debugger.")] = False


@dataclass(frozen=True)
class PartsQuestion(Group):
    """What parts are asked about."""

    panel = DRAWN
    device: options.Device = "cpu"
    seed: Annotated[int, Option("Of the tokens that parts are asked about, or of the cases.")] = 0
    labels: options.Labels = "0,1"
    cfg: options.Cfg = 1.5
    examples: Annotated[int, Option("Cases a law, for decoders with parts of our own names.")] = 12


@dataclass(frozen=True)
class PartsOutputs(Group):
    """What is written."""

    panel = WRITTEN
    json: options.Json = None
    verbose: options.Verbose = False
    quiet: options.Quiet = False


@command(
    "parts --examples 6",
    "parts --implementation mydecoder:factory",
    "parts --implementation published:sdvar-parallel --checkout ../SDVAR --json parts.json",
)
def parts(tested: PartsDecoder, networks: Pair, asked: PartsQuestion, outputs: PartsOutputs) -> None:
    """Ask each part of a decoder the laws of its component; a decode that crashes hides none of them.

    Exit status: 0 all hold, 1 one is broken or crashes, 2 bad input, 3 one is not there or was never asked.
    """
    from harness.commands.inputs import decoder, load_models
    from harness.decoders.process import Limits
    from harness.decoders.terms import Terms
    from harness.report.terminal import parts_json, parts_verdict, plain_console, show_parts
    from harness.rounding.precision import set_precision
    from harness.signals import silence

    paths = check_outputs({"json": outputs.json}, networks.files())
    own = decoder(tested.implementation, tested.checkout, tested.option)
    if own.published:
        pair = load_models(networks, Mode(asked.device))
        terms = Terms(in_process=tested.in_process, limits=Limits(tested.timeout))
        with silence(outputs.quiet):
            rows = of_published(own, pair, Images(str(asked.seed), asked.labels, cfg=asked.cfg), terms)
    else:
        set_precision(False)
        rows = of_laws(own, asked.examples, asked.seed, outputs.quiet)
    verdict = parts_verdict(rows)
    show_parts(rows, verdict, plain_console(), outputs.quiet, outputs.verbose)
    if "json" in paths:
        write_whole(paths["json"], parts_json(rows, verdict))
    raise typer.Exit(verdict.exit_status)


def of_published(own: Decoder, pair: ModelPair, images: Images, terms: Terms) -> list[PartLaw]:
    """Ask the parts of published code, in its own process. Raises `InputError` for a checkout that does not fit."""
    from harness.commands.inputs import requests_for
    from harness.decoders.runner import start_runner
    from harness.rounding.measure import budget_for

    requests = requests_for(pair, images)
    budget = budget_for(pair)  # before the decoder is built
    built = start_runner(pair, own.name, own.settings()[:1], requests[0].B, terms)
    try:
        return built.parts(0, requests[0], budget)
    finally:
        built.close()


def of_laws(own: Decoder, examples: int, seed: int, quiet: bool) -> list[PartLaw]:
    """Ask the parts of a decoder that shows them as `Parts` does. Raises `InputError` for what cannot be asked."""
    from harness.commands.inputs import counts
    from harness.decoders.factory import load_factory
    from harness.laws.conformance import inspect_parts, part_laws
    from harness.laws.engine import fixed_cases
    from harness.laws.law import Subject
    from harness.report.progress import LongWork
    from harness.signals import silence

    counts("examples", str(examples), "12")
    if not 0 <= seed < 2**63:
        raise InputError("seed", seed, "must lie in 0..2^63-1", "pass --seed 0")
    subject = Subject(load_factory(own.name), own.options)
    with LongWork("laws of parts", len(part_laws()), quiet) as work, silence(quiet):
        return inspect_parts(subject, fixed_cases(examples, seed), work.advance)
