"""`sdvar-harness verify`: prove a decoder against the reference, or show where it goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands import options
from harness.files import check_outputs, check_readable, write_whole
from harness.protocol.decoder import Settings
from harness.report.as_json import as_json
from harness.report.terminal import plain_console, progress_bar, show
from harness.rounding.stored import SHIPPED
from harness.runs.factory import DEFAULT, load_factory
from harness.runs.verification import verify as run_verification
from harness.speculative.policies import parse


def verify(
    models: options.Models = "digits",
    draft: options.Draft = None,
    target: options.Target = None,
    vae: options.Vae = None,
    patch_nums: options.PatchNums = "",
    device: options.Device = "cpu",
    tf32: options.Tf32 = False,
    dtype: options.Dtype = "float32",
    draft_dtype: options.DraftDtype = "",
    seeds: options.Seeds = "0:4",
    labels: options.Labels = "all",
    batch: options.Batch = 0,
    cfg: options.Cfg = 1.5,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.0,
    noise: options.Noise = "image",
    draft_len: Annotated[
        str, typer.Option(help="Scales proposed per round: 5, by scale 1/2/3/…, or dynamic:1:5; several: 1,2,dynamic.")
    ] = "1,2,5,10",
    bonus: Annotated[bool, typer.Option("--bonus", help="Also submit the scale behind the drafted ones.")] = False,
    policy: options.Policy = "coupled",
    contract: Annotated[str, typer.Option(help="Demand a contract: A, B or C. Empty: the policy's own.")] = "",
    implementation: Annotated[str, typer.Option(help="Decoder under test, package.module:factory.")] = DEFAULT,
    budgets: Annotated[Path, typer.Option(help="File of `calibrate`; modes that it lacks are measured.")] = SHIPPED,
    json: options.Json = None,
    quiet: options.Quiet = False,
) -> None:
    """Run a decoder and the sequential reference under shared seeds and judge every token.

    Exit status: 0 the claim holds, 1 a defect, 2 bad input, 3 inconclusive.
    """
    networks, mode = (
        options.Networks(models, draft, target, vae, patch_nums),
        options.Mode(device, tf32, dtype, draft_dtype),
    )
    images, sampling = options.Images(seeds, labels, batch), options.Sampling(cfg, top_k, top_p, noise)
    outputs = check_outputs({"json": json}, {**networks.files(), "budgets": budgets})
    check_readable(budgets, "budgets", "pass a file of sdvar-harness calibrate", "is not there")
    budgets = budgets.absolute()  # read behind the factory, which may change folder
    factory, settings = load_factory(implementation), settings_for(draft_len, bonus, policy, contract)
    pair = options.load_models(networks, mode)
    requests = options.requests_for(pair, images, sampling)
    with progress_bar(quiet) as progress:
        task = progress.add_task("decoding", total=len(requests) * (1 + len(settings)))
        result = run_verification(pair, factory, settings, requests, lambda: progress.advance(task), budgets)
    show(result, plain_console(), quiet)
    if "json" in outputs:
        write_whole(outputs["json"], as_json(result))
    raise typer.Exit(result.verdict.exit_status)


def settings_for(draft_len: str, bonus: bool, policy: str, contract: str) -> list[Settings]:
    """Return one setting a draft_len. Raises `InputError` for another form, or an illegal (contract, policy)."""
    if contract:
        parse(policy, contract)
    lengths: tuple[int | str, ...] = tuple(draft_len.split(","))
    if all(character in "0123456789:,-" for character in draft_len):
        lengths = options.integers("draft_len", draft_len, "1,2,5")
    return [Settings(length, bonus, policy) for length in lengths]
