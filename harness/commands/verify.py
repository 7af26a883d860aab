"""`sdvar-harness verify`: prove a decoder against the reference, or show where it goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from harness.commands.options import DrawOptions, ModelOptions, ReportOptions, flat_options, integers
from harness.errors import InputError
from harness.files import write_whole
from harness.protocol.decoder import Settings
from harness.report.as_json import as_json
from harness.report.terminal import plain_console, show
from harness.rounding.stored import SHIPPED
from harness.runs.factory import DEFAULT, load_factory
from harness.runs.verification import Terms
from harness.runs.verification import verify as run_verification
from harness.speculative.policies import HELP, parse


@dataclass(frozen=True)
class DecoderOptions:
    """Which decoder, and how it speculates."""

    draft_len: Annotated[
        str, typer.Option(help="Scales proposed per round: 5, by scale 1/2/3/…, or dynamic:1:5; several: 1,2,dynamic.")
    ] = "1,2,5,10"
    bonus: Annotated[bool, typer.Option("--bonus", help="Also submit the scale behind the drafted ones.")] = False
    policy: Annotated[str, typer.Option(help=HELP)] = "coupled"
    contract: Annotated[str, typer.Option(help="Demand a contract: A, B or C. Empty: the policy's own.")] = ""
    implementation: Annotated[str, typer.Option(help="Decoder under test, package.module:factory.")] = DEFAULT
    budgets: Annotated[Path, typer.Option(help="File of `calibrate`; modes that it lacks are measured.")] = SHIPPED

    def settings(self) -> list[Settings]:
        """Return one setting a draft_len. Raises `InputError` for another form, or an illegal (contract, policy)."""
        if self.contract:
            parse(self.policy, self.contract)
        lengths: tuple[int | str, ...] = tuple(self.draft_len.split(","))
        if all(character in "0123456789:,-" for character in self.draft_len):
            lengths = integers("draft_len", self.draft_len, "1,2,5")
        return [Settings(length, self.bonus, self.policy) for length in lengths]


@flat_options
def verify(model: ModelOptions, draw: DrawOptions, decoder: DecoderOptions, report: ReportOptions) -> None:
    """Run a decoder and the sequential reference under shared seeds and judge every token.

    Exit status: 0 the claim holds, 1 a defect, 2 bad input, 3 inconclusive.
    """
    report.check(**model.files(), budgets=decoder.budgets)
    if not decoder.budgets.exists():
        raise InputError("budgets", str(decoder.budgets), "is not there", "pass a file of sdvar-harness calibrate")
    factory, settings = load_factory(decoder.implementation), decoder.settings()
    models = model.load()
    requests = draw.requests(models.target.config.classes, models.target.config.V)
    with Progress(console=Console(stderr=True), transient=True, disable=report.quiet) as progress:
        task = progress.add_task("decoding", total=len(requests) * (1 + len(settings)))
        result = run_verification(
            models, factory, settings, requests, lambda: progress.advance(task), Terms(budgets=decoder.budgets)
        )
    if report.json is not None:
        write_whole(report.json, as_json(result))
    show(result, plain_console(), report.quiet)
    raise typer.Exit(result.verdict.exit_status)
