"""`sdvar-harness verify`: prove a decoder against the reference, or show where it goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from harness.commands import options
from harness.commands.listed import check_most, integers
from harness.commands.quality import FeaturesFile, MaxLoss, RealFile, claim, demand
from harness.decoders.factory import DEFAULT, is_own
from harness.decoders.process import TIMEOUT_S, Limits
from harness.decoders.terms import Other, Terms
from harness.errors import InputError
from harness.files import check_outputs, check_readable, write_whole
from harness.judge.verdict import Verdict
from harness.laws.catalogue import LAWS
from harness.laws.few_cases import CASES, LawsInterrupted, Where, laws_beside
from harness.pool.employ import Execution
from harness.protocol.contract import Contract
from harness.protocol.decoder import Settings
from harness.quality.gather import Conditions
from harness.quality.study import IMAGES, decoders
from harness.report.as_json import as_json
from harness.report.html.page import check_page
from harness.report.progress import LongWork
from harness.report.terminal import plain_console, show_verification
from harness.rounding.budget import SHIPPED
from harness.runs.cover import covering, plan_of, verify_design
from harness.runs.decodes import Decodes, RunInterrupted, Step, verify_decodes
from harness.runs.keep import RunStore
from harness.runs.plan import Plan
from harness.runs.result import LawsTried, Verification
from harness.runs.runfile import RunFile
from harness.signals import silence
from harness.speculative.policies import parse

# Options that say what is decoded and how: with none of them, the covering design is.
GRID = ("models", "draft", "target", "vae", "draft_noise", "seeds", "labels", "images", "batch", "cfg", "top_k",
        "top_p", "noise", "draft_len", "bonus", "dtype", "draft_dtype", "tf32", "graphs", "compile")  # fmt: skip
DRAFT_LENGTHS = "1,2,5,10"


def verify(
    context: typer.Context,
    models: options.Models = "digits",
    draft: options.Draft = None,
    target: options.Target = None,
    vae: options.Vae = None,
    patch_nums: options.PatchNums = "",
    draft_noise: options.DraftNoise = None,
    device: options.Device = "cpu",
    tf32: options.Tf32 = False,
    dtype: options.Dtype = "float32",
    draft_dtype: options.DraftDtype = "",
    seeds: options.Seeds = "0:4",
    labels: options.Labels = "all",
    images: options.Addresses = "",
    batch: Annotated[
        int, typer.Option(help="Images per batch, seeds mixed; 0 = as many as device and memory like.")
    ] = 0,
    cfg: options.Cfg = 1.5,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.0,
    noise: options.Noise = "image",
    draft_len: Annotated[
        str, typer.Option(help="Scales proposed per round: 5, by scale 1/2/3/…, or dynamic:1:5; several: 1,2,dynamic.")
    ] = DRAFT_LENGTHS,
    bonus: Annotated[bool, typer.Option("--bonus", help="Also submit the scale behind the drafted ones.")] = False,
    policy: options.Policy = "coupled",
    graphs: options.Graphs = False,
    compile: options.Compile = False,
    contract: Annotated[
        str,
        typer.Option(help="Demand A, B or C; a weaker claim is refused. Empty: what the decoder claims."),
    ] = "",
    sequential: Annotated[bool, typer.Option("--sequential", help="The decoder drafts nothing, and need not.")] = False,
    implementation: options.ImplementationName = DEFAULT,
    checkout: options.Checkout = None,
    option: options.Own = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds of one decode, or one law, in the decoder's own process.")
    ] = TIMEOUT_S,
    memory: Annotated[float, typer.Option(help="GiB that this process may allocate; 0 = no limit.")] = 0.0,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run the decoder in this process: for a debugger, and less safe.")
    ] = False,
    max_loss: MaxLoss = None,
    quality_images: Annotated[int, typer.Option(help="Images that --max-loss is judged on, each setting.")] = IMAGES,
    features: FeaturesFile = None,
    real: RealFile = None,
    against: Annotated[
        str, typer.Option(help="Judge against this decoder, OTHER:factory, in the reference's place.")
    ] = "",
    against_checkout: Annotated[Path | None, typer.Option(help="Its checkout; alone: of the same sampler.")] = None,
    against_option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for its factory.")] = None,
    budgets: Annotated[Path, typer.Option(help="File of `calibrate`; modes that it lacks are measured.")] = SHIPPED,
    cover: Annotated[
        bool | None,
        typer.Option(
            help="Two drafts, many lengths and requests: a covering design. [default: where nothing is asked]"
        ),
    ] = None,
    laws: Annotated[
        int | None,
        typer.Option(
            help="Try every law in so many cases, too; 0 = none. [default: 2, of the harness's own decoder and where "
            "nothing is asked]",
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Keep everything in this file, as it happens.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in that file stopped.")] = False,
    workers: options.Workers = 0,
    cluster: options.Cluster = "",
    json: options.Json = None,
    verbose: options.Verbose = False,
    html: options.Html = None,
    quiet: options.Quiet = False,
) -> None:
    """Run a decoder and the sequential reference under shared seeds and judge every token.

    Without options of what is drawn, and how, a covering design is decoded: both drafts, bonus on and off, batches that
    part ways, one decoder for many requests. With any of them, every seed with every label at every draft length.

    Exit status: 0 the claim holds, 1 a defect, 2 bad input, 3 inconclusive, 130 or 143 interrupted.
    """
    recipe = recipe_of(locals())
    networks, mode = (
        options.Networks(models, draft, target, vae, patch_nums, draft_noise),
        options.Mode(device, tf32, dtype, draft_dtype),
    )
    drawn, sampling = options.Images(seeds, labels, batch, images), options.Sampling(cfg, top_k, top_p, noise)
    outputs = outputs_of((json, run, html), {**networks.files(), "budgets": budgets})
    stated = demand(max_loss, contract, quality_images, (networks, features, real))
    check_readable(budgets, "budgets", "pass a file of sdvar-harness calibrate", "is not there")
    budgets = budgets.absolute()  # read behind the factory, which may change folder
    own = options.decoder(implementation, checkout, option, contract)
    rival = bool(against or against_checkout is not None or against_option)
    settings = options.with_speed(settings_for(draft_len, bonus, policy, own), own, graphs, compile)
    if cover and (graphs or compile):
        raise InputError("cover", True, "is a design with settings of its own", "drop it, or --graphs and --compile")
    demanded = Contract.of(contract) if contract else None
    other = options.decoder(against or implementation, against_checkout, against_option) if rival else None
    terms = Terms(
        demanded, sequential, in_process, Limits(timeout, memory), budgets,
        against=other_for(other, settings, (draft_len, bonus, policy)) if other else None,
    )  # fmt: skip
    execution, store = Execution(workers, cluster, device), RunStore(outputs.get("run"), resume, recipe)
    store.check_new()
    pair = options.load_models(networks, mode)
    apart = not in_process and not all(is_own(each.name) for each in (own, other) if each is not None)
    requests, why = options.batches_for(pair, drawn, sampling, apart)
    # published code has settings of its own, and two decoders are compared on what is asked for
    usual = not (own.published or rival or any(_given(context, name) for name in GRID))
    cover = usual if cover is None else cover
    laws = laws_of(laws, own, cover)
    plan = Plan.of(settings, requests)
    blocks = covering(pair, policy, options=own.options) if cover else ()
    status = 0
    with kept_for(store, html is not None) as store:
        with LongWork("images", sum(block.images for block in blocks) or plan.images, quiet) as work, silence(quiet):

            def progress(step: Step) -> None:
                work.advance(step.images, step.defects)

            try:
                do = verify_design if cover else verify_decodes
                decodes = Decodes(implementation, plan_of(blocks) if cover else plan, terms)
                result = do(pair, decodes, execution, store, progress)
            except RunInterrupted as stop:
                result, status = stop.result, stop.status
        limits = terms.limits if apart and not is_own(implementation) else None
        status = try_laws(result, own, laws, Where(str(pair.device), limits), store.file, quiet) or status
        if status == 0 and stated is not None and result.is_whole and result.verdict is not Verdict.DEFECT:
            sources = decoders(implementation, settings)
            status = claim(result, pair, stated, (sources, drawn, sampling), Conditions(execution, store, terms), quiet)
        result.about["batch"] = "those of the design" if cover else why
        show_verification(result, plain_console(), quiet, verbose)
        if "json" in outputs:
            write_whole(outputs["json"], as_json(result))
        if "html" in outputs and store.file is not None:
            write_whole(outputs["html"], page_of(result, store.file, run is not None))
    raise typer.Exit(status or result.verdict.exit_status)


def laws_of(asked: int | None, own: options.Decoder, cover: bool) -> int:
    """Return in how many cases every law is tried beside the run. Raises `InputError` where it cannot be."""
    if asked is None:
        # of others only where it is asked for: networks of their own, in float64, are not for everybody's code
        return CASES if cover and is_own(own.name) else 0
    if asked < 0:
        raise InputError("laws", asked, "must be 0 cases or more", f"pass {CASES}")
    check_most("laws", asked, str(CASES))
    if asked and own.published:
        rule = "are tried on networks that published code does not take"
        remedy = f"pytest tests/property --implementation {own.name} --dtype float32"
        raise InputError("laws", asked, rule, remedy)
    return asked


def try_laws(
    result: Verification, own: options.Decoder, count: int, where: Where, file: Path | None,
    quiet: bool,
) -> int:  # fmt: skip
    """Try every law in some cases, and put what they say into a result, and into its run file where it has one.

    What the file of a run that is gone on with says already is not tried again. Returns the exit status of a signal
    that ended it early, or 0.
    """
    if not result.is_whole or result.verdict is Verdict.DEFECT:
        return 0
    tried, status = None, 0
    if file is not None:
        with closing(RunFile.go_on(file)) as kept:
            noted = kept.noted("laws")
            tried = LawsTried.from_dict(noted) if noted else None
    if count and (tried is None or tried.left or tried.cases != count):
        with LongWork("laws", len(LAWS), quiet) as work, silence(quiet):
            try:
                tried = laws_beside(own.name, count, own.options, where, lambda law: work.advance(said=law))
            except LawsInterrupted as stop:
                tried, status = stop.tried, stop.status
        if file is not None:
            with closing(RunFile.go_on(file)) as kept:
                kept.note("laws", tried.as_dict())
    if tried is not None:
        result.take_laws(tried)
    return status


def outputs_of(files: tuple[Path | None, ...], inputs: Mapping[str, Path | None]) -> dict[str, Path]:
    """Return what is written, by name: JSON, run file, page. Raises as `check_outputs` and `check_page` do."""
    outputs = check_outputs(dict(zip(("json", "run", "html"), files, strict=True)), inputs)
    check_page(files[-1])
    return outputs


NOT_REPEATED = (
    "context", "cover", "laws",
    "seeds", "labels", "images", "batch", "cfg", "top_k", "top_p", "noise", "draft_len", "bonus", "policy", "run",
    "resume", "workers", "cluster", "json", "html", "verbose", "quiet",
    "max_loss", "quality_images", "features", "real",
    "checkout", "option", "against", "against_checkout", "against_option",  # each setting has its own (`runs.case`)
)  # fmt: skip


@contextmanager
def kept_for(store: RunStore, page: bool) -> Iterator[RunStore]:
    """Keep a run in a temporary file where a page is asked for and no run file: a page shows what a file keeps."""
    if store.file is not None or not page:
        yield store
        return
    with TemporaryDirectory(prefix="sdvar-") as folder:
        yield replace(store, file=Path(folder) / "run.db")


def page_of(result: Verification, file: Path, keeps: bool) -> bytes:
    """Return the page of a run; `keeps` tells whether its file stays."""
    from harness.report.html.run import run_page, seen_in  # noqa: PLC0415  # Jinja2 is asked for where a page is made

    return run_page(result, seen_in(file, result, keeps))


def recipe_of(given: Mapping[str, object]) -> dict[str, str]:
    """Return the options that repeat a run and are not the usual ones: text, empty for a flag; files absolute."""
    usual = {name: parameter.default for name, parameter in signature(verify).parameters.items()}
    chosen = {name: value for name, value in given.items() if name not in NOT_REPEATED and value != usual[name]}
    return {
        name: "" if value is True else str(value.absolute() if isinstance(value, Path) else value)
        for name, value in chosen.items()
    }


def _given(context: typer.Context, name: str) -> bool:
    """Tell whether an option was given."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def settings_for(draft_len: str, bonus: bool, policy: str, own: options.Decoder) -> list[Settings]:
    """Return one setting a draft_len. Raises `InputError` for another form, or an illegal (contract, policy)."""
    if own.contract:
        parse(policy, own.contract)
    if own.published and draft_len == DRAFT_LENGTHS:
        return own.settings()
    lengths: tuple[int | str, ...] = tuple(draft_len.split(","))
    if all(character in "0123456789:,-" for character in draft_len):
        lengths = integers("draft_len", draft_len, "1,2,5")
    return [Settings(length, bonus, "" if own.published else policy, own.options) for length in lengths]


def other_for(other: options.Decoder, settings: list[Settings], how: tuple[str, bool, str]) -> Other:
    """Return the decoder to judge against, with as many settings. Raises `InputError` where they do not pair up."""
    theirs = settings_for(*how, other)
    if len(theirs) == 1:  # its draft_len is that of the setting it stands beside, as with one --draft-len
        theirs = [replace(theirs[0], draft_len=setting.draft_len) for setting in settings]
    if len(theirs) != len(settings):
        rule = f"has {len(theirs)} settings, and the decoder {len(settings)}"
        raise InputError("against", other.name, rule, "pass one --draft-len")
    return Other(other.name, tuple(theirs))
