"""`sdvar-harness verify`: prove a decoder against the reference, or show where it goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import options
from harness.commands.options import (
    BUDGETS,
    DECODED,
    JUDGED,
    QUALITY_IMAGES,
    TIMEOUT_S,
    WRITTEN,
    Networks,
)
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs, check_readable, write_whole

if TYPE_CHECKING:
    from harness.commands.inputs import Decoder
    from harness.decoders.terms import Other
    from harness.laws.few_cases import Where
    from harness.protocol.decoder import Settings
    from harness.runs.keep import RunStore
    from harness.runs.result import Verification

DRAFT_LENGTHS = "1,2,5,10"
LAW_CASES = 2
GRID = "in a grid"  # when a default holds: the covering design has values of its own


@dataclass(frozen=True)
class VerifyImages(options.Images):
    """What is drawn, and how; the covering design draws what its blocks say."""

    applies = GRID
    batch: Annotated[
        int, Option("Images per batch, seeds mixed; 0 = as many as device and memory like.", rare=True)
    ] = 0
    addresses: Annotated[
        str,
        Option("Address of every label's image, which its numbers depend on: 0,5 or 0:4.", name="--images", rare=True),
    ] = ""


@dataclass(frozen=True)
class VerifyLengths(Group):
    """How many scales are drafted; the covering design has lengths of its own."""

    panel, applies = DECODED, GRID
    draft_len: Annotated[
        str, Option("Scales proposed per round: 5, by scale 1/2/3/…, or dynamic:1:5; several: 1,2,dynamic.")
    ] = DRAFT_LENGTHS
    bonus: options.Bonus = False


@dataclass(frozen=True)
class VerifyDecoding(Group):
    """How it is decoded."""

    panel = DECODED
    length: VerifyLengths = VerifyLengths()
    policy: options.Policy = "coupled"
    graphs: options.Graphs = False
    compile: options.Compile = False


@dataclass(frozen=True)
class VerifyDecoder(options.UnderTest):
    """The decoder under test, and what it may take."""

    timeout: Annotated[float, Option("Seconds of one decode, or one law, in the decoder's own process.", rare=True)] = (
        TIMEOUT_S
    )
    memory: Annotated[float, Option("GiB that its process may allocate; 0 = no limit.", rare=True)] = 0.0
    in_process: Annotated[
        bool, Option("Run the decoder in this process: for a debugger, and less safe.", rare=True)
    ] = False


@dataclass(frozen=True)
class VerifyJudging(Group):
    """How it is judged."""

    panel = JUDGED
    contract: options.Contract = ""
    sequential: Annotated[bool, Option("The decoder drafts nothing, and need not.", rare=True)] = False
    cover: Annotated[
        bool | None,
        Option("Two drafts, many lengths and requests: a covering design.", rare=True, shown="where nothing is asked"),
    ] = None
    laws: Annotated[
        int | None,
        Option(
            "Try every law in so many cases, too; 0 = none.",
            rare=True,
            shown=f"{LAW_CASES}, of the harness's own decoder and where nothing is asked",
        ),
    ] = None
    budgets: options.Budgets = BUDGETS
    against: Annotated[
        str, Option("Judge against this decoder, OTHER:factory, in the reference's place.", rare=True)
    ] = ""
    against_checkout: Annotated[Path | None, Option("Its checkout; alone: of the same sampler.", rare=True)] = None
    against_option: Annotated[list[str] | None, Option("NAME=VALUE for its factory.", rare=True)] = None
    max_loss: options.MaxLoss = None
    quality_images: Annotated[int, Option("Images that --max-loss is judged on, each setting.", rare=True)] = (
        QUALITY_IMAGES
    )
    features: options.Features = None
    real: options.Real = None


@dataclass(frozen=True)
class VerifyOutputs(Group):
    """What is written, and by whom the work is done."""

    panel = WRITTEN
    run: Annotated[Path | None, Option("Keep everything in this file, as it happens.", rare=True)] = None
    resume: options.Resume = False
    workers: options.Workers = 0
    cluster: options.Cluster = ""
    json: options.Json = None
    html: options.Html = None
    verbose: options.Verbose = False
    quiet: options.Quiet = False


@command(
    "verify",
    "verify --implementation mydecoder:factory --seeds 0:2 --labels 0,1",
    "verify --draft small.pth --target large.pth --vae vae.pth --device cuda --html report.html",
)
def verify(  # noqa: PLR0915  # it imports what it works with
    networks: Networks,
    images: VerifyImages,
    decoding: VerifyDecoding,
    tested: VerifyDecoder,
    judging: VerifyJudging,
    outputs: VerifyOutputs,
) -> None:
    """Run a decoder and the sequential reference under shared seeds and judge every token.

    Without options of what is drawn, and how, a covering design is decoded: both drafts, bonus on and off, batches
    whose images accept different numbers of scales, one decoder for many requests. With any of them, a grid: every seed
    with every label at every draft length.

    Exit status: 0 the claim holds, 1 a defect, 2 bad input, 3 inconclusive, 130 or 143 interrupted.
    """
    from harness.commands.inputs import batches_for, decoder, load_models, with_speed
    from harness.commands.quality import claim, demand
    from harness.decoders.factory import is_own
    from harness.decoders.process import Limits
    from harness.decoders.terms import Terms
    from harness.judge.verdict import Verdict
    from harness.laws.few_cases import Where
    from harness.pool.employ import Execution
    from harness.protocol.contract import Contract
    from harness.quality.gather import Conditions
    from harness.quality.study import decoders
    from harness.report.as_json import as_json
    from harness.report.html.page import check_page
    from harness.report.progress import LongWork
    from harness.report.terminal import plain_console, show_verification
    from harness.runs.cover import covering, plan_of, verify_design
    from harness.runs.decodes import Decodes, RunInterrupted, Step, verify_decodes
    from harness.runs.keep import RunStore
    from harness.runs.plan import Plan
    from harness.signals import silence

    files = {"json": outputs.json, "run": outputs.run, "html": outputs.html}
    paths = check_outputs(files, {**networks.files(), "budgets": judging.budgets})
    check_page(outputs.html)
    measuring = networks, judging.features, judging.real
    stated = demand(judging.max_loss, judging.contract, judging.quality_images, measuring)
    check_readable(judging.budgets, "budgets", "pass a file of sdvar-harness calibrate", "is not there")
    budgets = judging.budgets.absolute()  # read after the factory, which may change folder
    own = decoder(tested.implementation, tested.checkout, tested.option, judging.contract)
    theirs = judging.against, judging.against_checkout, judging.against_option
    rival = any(each not in (None, "") and each != [] for each in theirs)
    settings = with_speed(settings_for(decoding, own), own, decoding.graphs, decoding.compile)
    if judging.cover and (decoding.graphs or decoding.compile):
        raise InputError("cover", True, "is a design with settings of its own", "drop it, or --graphs and --compile")
    other = decoder(theirs[0] or tested.implementation, *theirs[1:]) if rival else None
    terms = Terms(
        Contract.of(judging.contract) if judging.contract else None, judging.sequential, tested.in_process,
        Limits(tested.timeout, tested.memory), budgets,
        against=other_for(other, settings, decoding) if other else None,
    )  # fmt: skip
    execution = Execution(outputs.workers, outputs.cluster, networks.mode.device)
    store = RunStore(paths.get("run"), outputs.resume, recipe_of(networks, decoding, tested, judging))
    store.check_new()
    pair = load_models(networks, networks.mode)
    apart = not tested.in_process and not all(is_own(each.name) for each in (own, other) if each is not None)
    requests, why = batches_for(pair, images, apart)
    # published code has settings of its own, and two decoders are compared on what is asked for
    usual = not (own.published or rival or asks(networks, images, decoding))
    cover = usual if judging.cover is None else judging.cover
    laws = laws_of(judging.laws, own, cover)
    plan = Plan.of(settings, requests)
    blocks = covering(pair, decoding.policy, options=own.options) if cover else ()
    status, quiet = 0, outputs.quiet
    with kept_for(store, outputs.html is not None) as store:
        with LongWork("images", sum(block.images for block in blocks) or plan.images, quiet) as work, silence(quiet):

            def progress(step: Step) -> None:
                work.advance(step.images, step.defects)

            try:
                do = verify_design if cover else verify_decodes
                decodes = Decodes(tested.implementation, plan_of(blocks) if cover else plan, terms)
                result = do(pair, decodes, execution, store, progress)
            except RunInterrupted as stop:
                result, status = stop.result, stop.status
        limits = terms.limits if apart and not is_own(tested.implementation) else None
        status = try_laws(result, own, laws, Where(str(pair.device), limits), store.file, quiet) or status
        if status == 0 and stated is not None and result.is_whole and result.verdict is not Verdict.DEFECT:
            sources = decoders(tested.implementation, settings)
            status = claim(result, pair, stated, (sources, images), Conditions(execution, store, terms), quiet)
        result.about["batch"] = "those of the design" if cover else why
        show_verification(result, plain_console(), quiet, outputs.verbose)
        if "json" in paths:
            write_whole(paths["json"], as_json(result))
        if "html" in paths and store.file is not None:
            from harness.report.html.run import run_page, seen_in  # Jinja2 is asked for where a page is made

            page = run_page(result, seen_in(store.file, result, outputs.run is not None))
            write_whole(paths["html"], page)
    raise typer.Exit(status or result.verdict.exit_status)


def asks(networks: Networks, images: VerifyImages, decoding: VerifyDecoding) -> bool:
    """Tell whether an option says what is decoded, or how: with none of them, the covering design is."""
    given = networks.given | images.given | (networks.mode.given - {"device"})
    return bool(given | decoding.length.given | (decoding.given - {"policy"}))


def laws_of(asked: int | None, own: Decoder, cover: bool) -> int:
    """Return in how many cases every law is tried beside the run. Raises `InputError` where it cannot be."""
    from harness.commands.inputs import check_most
    from harness.decoders.factory import is_own

    if asked is None:
        # of others only where it is asked for: networks of their own, in float64, are not for everybody's code
        return LAW_CASES if cover and is_own(own.name) else 0
    if asked < 0:
        raise InputError("laws", asked, "must be 0 cases or more", f"pass {LAW_CASES}")
    check_most("laws", asked, str(LAW_CASES))
    if asked and own.published:
        rule = "are tried on networks that published code does not take"
        remedy = f"pytest tests/property --implementation {own.name} --dtype float32"
        raise InputError("laws", asked, rule, remedy)
    return asked


def try_laws(
    result: Verification, own: Decoder, count: int, where: Where, file: Path | None,
    quiet: bool,
) -> int:  # fmt: skip
    """Try every law in some cases, and put what they say into a result, and into its run file where it has one.

    What the file of a run that is gone on with says already is not tried again. Returns the exit status of a signal
    that ended it early, or 0.
    """
    from harness.judge.verdict import Verdict
    from harness.laws.catalogue import LAWS
    from harness.laws.few_cases import LawsInterrupted, laws_beside
    from harness.report.progress import LongWork
    from harness.runs.result import LawsTried
    from harness.runs.runfile import RunFile
    from harness.signals import silence

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


@contextmanager
def kept_for(store: RunStore, page: bool) -> Iterator[RunStore]:
    """Keep a run in a temporary file where a page is asked for and no run file: a page shows what a file keeps."""
    if store.file is not None or not page:
        yield store
        return
    with TemporaryDirectory(prefix="sdvar-") as folder:
        yield replace(store, file=Path(folder) / "run.db")


REPEATED = (
    "graphs",
    "compile",
    "contract",
    "sequential",
    "implementation",
    "timeout",
    "memory",
    "in_process",
    "budgets",
)


def recipe_of(networks: Networks, *others: Group) -> dict[str, str]:
    """Return the options that repeat a run and are not the usual ones: text, empty for a flag; files absolute.

    What is drawn, draft lengths and policies are left out, checkouts and factories' options, too: each setting and each
    request has its own.
    """
    changed = networks.changed()
    for group in others:
        changed |= {name: value for name, value in group.changed().items() if name in REPEATED}
    return {
        name: "" if value is True else str(value.absolute() if isinstance(value, Path) else value)
        for name, value in changed.items()
    }


def settings_for(decoding: VerifyDecoding, own: Decoder) -> list[Settings]:
    """Return one setting a draft_len. Raises `InputError` for another form, or an illegal (contract, policy)."""
    from harness.commands.inputs import integers
    from harness.protocol.decoder import Settings
    from harness.speculative.policies import parse

    draft_len = decoding.length.draft_len
    if own.contract:
        parse(decoding.policy, own.contract)
    if own.published and draft_len == DRAFT_LENGTHS:
        return own.settings()
    lengths: tuple[int | str, ...] = tuple(draft_len.split(","))
    if all(character in "0123456789:,-" for character in draft_len):
        lengths = integers("draft_len", draft_len, "1,2,5")
    policy = "" if own.published else decoding.policy
    return [Settings(length, decoding.length.bonus, policy, own.options) for length in lengths]


def other_for(other: Decoder, settings: list[Settings], decoding: VerifyDecoding) -> Other:
    """Return the decoder to judge against, with as many settings. Raises `InputError` where they do not pair up."""
    from harness.decoders.terms import Other

    theirs = settings_for(decoding, other)
    if len(theirs) == 1:  # its draft_len is that of the setting it stands beside, as with one --draft-len
        theirs = [replace(theirs[0], draft_len=setting.draft_len) for setting in settings]
    if len(theirs) != len(settings):
        rule = f"has {len(theirs)} settings, and the decoder {len(settings)}"
        raise InputError("against", other.name, rule, "pass one --draft-len")
    return Other(other.name, tuple(theirs))
