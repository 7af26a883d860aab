"""`sdvar-harness parts`: the parts of a decoder one by one, by the names of the report."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.adapters.probe import PartLaw
from harness.commands import options
from harness.commands.listed import counts
from harness.decoders.factory import DEFAULT, load_factory
from harness.decoders.process import TIMEOUT_S, Limits
from harness.decoders.runner import start_runner
from harness.decoders.terms import Terms
from harness.errors import InputError
from harness.files import check_outputs, write_whole
from harness.laws.conformance import inspect_parts, part_laws
from harness.laws.engine import fixed_cases
from harness.laws.law import Subject
from harness.models.pair import ModelPair
from harness.report.parts import parts_json, parts_verdict, show_parts
from harness.report.progress import LongWork
from harness.report.terminal import plain_console
from harness.rounding.measure import budget_for
from harness.rounding.precision import set_precision
from harness.signals import silence


def parts(
    implementation: options.ImplementationName = DEFAULT,
    checkout: options.Checkout = None,
    option: options.Own = None,
    models: options.Models = "digits",
    draft: options.Draft = None,
    target: options.Target = None,
    vae: options.Vae = None,
    patch_nums: options.PatchNums = "",
    device: options.Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of the tokens that parts are asked about, or of the cases.")] = 0,
    labels: options.Labels = "0,1",
    cfg: options.Cfg = 1.5,
    examples: Annotated[int, typer.Option(help="Cases a law, for decoders with parts of our own names.")] = 12,
    timeout: Annotated[float, typer.Option(help="Seconds for all parts, in the decoder's own process.")] = TIMEOUT_S,
    in_process: Annotated[bool, typer.Option("--in-process", help="Ask them in this process: for a debugger.")] = False,
    json: options.Json = None,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Ask each part of a decoder the laws of its component; a decode that crashes hides none of them.

    Exit status: 0 all hold, 1 one is broken or crashes, 2 bad input, 3 one is not there or was never asked.
    """
    networks = options.Networks(models, draft, target, vae, patch_nums)
    outputs = check_outputs({"json": json}, networks.files())
    own = options.decoder(implementation, checkout, option)
    if own.published:
        pair = options.load_models(networks, options.Mode(device, False, "float32", ""))
        terms = Terms(in_process=in_process, limits=Limits(timeout))
        images = options.Images(str(seed), labels, 0)
        with silence(quiet):
            rows = of_published(own, pair, images, options.Sampling(cfg, 0, 0.0, "image"), terms)
    else:
        set_precision(False)
        rows = of_laws(own, examples, seed, quiet)
    verdict = parts_verdict(rows)
    show_parts(rows, verdict, plain_console(), quiet, verbose)
    if "json" in outputs:
        write_whole(outputs["json"], parts_json(rows, verdict))
    raise typer.Exit(verdict.exit_status)


def of_published(
    own: options.Decoder, pair: ModelPair, images: options.Images, sampling: options.Sampling, terms: Terms
) -> list[PartLaw]:
    """Ask the parts of published code, in its own process. Raises `InputError` for a checkout that does not fit."""
    requests = options.requests_for(pair, images, sampling)
    budget = budget_for(pair)  # before the decoder is built
    made = start_runner(pair, own.name, own.settings()[:1], requests[0].B, terms)
    try:
        return made.parts(0, requests[0], budget)
    finally:
        made.close()


def of_laws(own: options.Decoder, examples: int, seed: int, quiet: bool) -> list[PartLaw]:
    """Ask the parts of a decoder that shows them as `Parts` does. Raises `InputError` for what cannot be asked."""
    counts("examples", str(examples), "12")
    if not 0 <= seed < 2**63:
        raise InputError("seed", seed, "must lie in 0..2^63-1", "pass --seed 0")
    subject = Subject(load_factory(own.name), own.options)
    with LongWork("laws of parts", len(part_laws()), quiet) as work, silence(quiet):
        return inspect_parts(subject, fixed_cases(examples, seed), work.advance)
