"""`sdvar-harness quality`: how good a decoder's images are, beside those of sequential decoding."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from harness.bench.policy_costs import EVERY_LENGTH, ONE_LENGTH
from harness.commands import options
from harness.commands.listed import check_most, integers
from harness.decoders.factory import DEFAULT
from harness.decoders.process import TIMEOUT_S, Limits
from harness.decoders.terms import Terms
from harness.errors import InputError
from harness.files import check_outputs, write_whole
from harness.models.pair import ModelPair
from harness.pool.employ import Execution
from harness.protocol.contract import Contract
from harness.protocol.decoder import Settings
from harness.protocol.request import NoiseOrder, Request
from harness.quality.distances import BLOCKS, check_installed
from harness.quality.features import Real, load_inception, load_statistics
from harness.quality.gather import Conditions
from harness.quality.loss import Quality, why
from harness.quality.measured import Measured
from harness.quality.sources import DRAFT, Source, controls
from harness.quality.study import IMAGES, Means, Study, decoders, digits, run
from harness.report.progress import LongWork
from harness.report.quality import best_cfg_line, quality_markdown, show_quality
from harness.report.tables import replaced_parts
from harness.report.terminal import plain_console, say
from harness.runs.keep import UNKEPT, RunStore
from harness.runs.result import Claims, Verification
from harness.runs.runfile import RunFile
from harness.speculative.sampler import build_decoder

EVERY = ",".join(name for name in (*EVERY_LENGTH, *ONE_LENGTH) if name != "greedy")
MaxLoss = Annotated[float | None, typer.Option(help="Judge the loss of quality: KEPT, LOST or INCONCLUSIVE, at this.")]
FeaturesFile = Annotated[
    Path | None, typer.Option("--features", help="Inception's weights file (torch-fidelity's), for other images.")
]
RealFile = Annotated[Path | None, typer.Option(help="Real data's mu and sigma, .npz as of the ADM evaluation.")]


def quality(
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
    images: Annotated[int, typer.Option(help="Images of every decoder, labels in turn.")] = IMAGES,
    batch: options.Batch = 0,
    seed: Annotated[int, typer.Option(help="Seed of all images; other seeds lie 2^32 away.")] = 0,
    labels: options.Labels = "all",
    cfg: options.Cfg = 1.5,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.0,
    policies: Annotated[
        str, typer.Option(help="Policies of the harness's own decoder, by commas; empty: none.")
    ] = EVERY,
    draft_len: Annotated[str, typer.Option(help="Draft lengths, by commas.")] = "5",
    bonus: Annotated[bool, typer.Option("--bonus", help="Also submit the scale behind the drafted ones.")] = False,
    graphs: options.Graphs = False,
    compile: options.Compile = False,
    implementation: Annotated[
        list[str] | None, typer.Option(help="A decoder under test, package.module:factory; several times.")
    ] = None,
    checkout: options.Checkout = None,
    option: options.Own = None,
    control: Annotated[int, typer.Option(help="How often sequential decoding is measured under other seeds.")] = 1,
    find_cfg: Annotated[str, typer.Option(help="Measure sequential decoding at these guidance values alone.")] = "",
    features: FeaturesFile = None,
    real: RealFile = None,
    max_loss: MaxLoss = None,
    blocks: Annotated[int, typer.Option(help="Blocks of images that intervals are made from.")] = BLOCKS,
    timeout: Annotated[float, typer.Option(help="Seconds of one decode in a decoder's own process.")] = TIMEOUT_S,
    in_process: Annotated[bool, typer.Option("--in-process", help="Run decoders under test in this process.")] = False,
    run_file: Annotated[
        Path | None, typer.Option("--run", help="Keep what is drawn in this file, as it happens.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in that file stopped.")] = False,
    workers: options.Workers = 0,
    cluster: options.Cluster = "",
    json: options.Json = None,
    into: Annotated[Path | None, typer.Option(help="Markdown file: replace its table between the markers.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write target calls against loss to this SVG file.")] = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure how good images are: distances to real data and to the target's law, with intervals and a verdict.

    Exit status: 0 every decoder under test is KEPT, or no loss was stated; 1 one is LOST; 2 bad input; 3 one is
    INCONCLUSIVE; 130 or 143 interrupted.
    """
    networks = options.Networks(models, draft, target, vae, patch_nums, draft_noise)
    inputs = {**networks.files(), "features": features, "real": real}
    outputs = check_outputs({"json": json, "run": run_file, "into": into, "picture": picture}, inputs)
    options.check_drawing(picture)
    check_installed()
    check_most("images", images, str(IMAGES))
    if into is not None:
        replaced_parts(into, {"quality": ""})
    means = means_for(networks, features, real)
    mine = own(policies, Settings(draft_len, bonus, graphs=graphs, compiled=compile))
    others = controls(control) + (at_cfgs(find_cfg) if find_cfg else [Source(DRAFT, draft=True), *mine])
    for name in implementation or []:
        given = options.decoder(name, checkout, option)
        others += decoders(name, given.settings() if given.published else [Settings(5, bonus, "", given.options)])
    conditions = Conditions(
        Execution(workers, cluster, device),
        RunStore(outputs.get("run"), resume),
        Terms(in_process=in_process, limits=Limits(timeout)),
    )
    order: NoiseOrder = "image"
    request = Request((0,), seed, cfg, top_k, top_p, order=order)
    pair = options.load_models(networks, options.Mode(device, tf32, dtype, draft_dtype))
    asked = Study(others, images, batch, labels_of(labels, pair), request, blocks, max_loss)
    for source in mine:  # what the own decoder refuses is refused before anything is drawn
        build_decoder(pair, source.settings)
    found = drawn(pair, means, asked, conditions, quiet)
    show_quality(found, plain_console(), quiet)
    if find_cfg:
        say(plain_console(), best_cfg_line(found))
    if "json" in outputs:
        write_whole(outputs["json"], found.document())
    if "into" in outputs:
        write_whole(outputs["into"], replaced_parts(outputs["into"], {"quality": quality_markdown(found)}).encode())
    if "picture" in outputs:
        from harness.bench.charts import svg, trade_off  # noqa: PLC0415  # matplotlib is asked for where one draws

        write_whole(outputs["picture"], svg(trade_off(found)))
    status = found.verdict.exit_status if found.verdict else 0
    raise typer.Exit(128 + found.stopped if found.stopped else status)


def drawn(pair: ModelPair, means: Means, asked: Study, conditions: Conditions, quiet: bool) -> Measured:
    """Draw and measure under a progress bar. Raises as `run` does."""
    with LongWork("images", asked.images * (2 + len(asked.others)), quiet) as work:
        found = run(pair, means, asked, conditions, work.advance)
    if found.stopped:
        kept = "; --resume goes on with the run" if conditions.store.file else ""
        say(plain_console(), f"interrupted: {found.rows[0].images} of {asked.images} images a decoder{kept}")
    return found


def means_for(networks: options.Networks, features: Path | None, real: Path | None) -> Means:
    """Return what images are measured by. Raises `InputError` for other networks than digits without `features`."""
    statistics: Real | None = load_statistics(real) if real is not None else None
    if features is not None:
        return Means(load_inception(features), statistics)
    own = networks.models if not any(networks.files().values()) else "custom"
    if own not in ("digits", "digits-close"):
        rule = f"are needed for {own}: the digits classifier that ships knows digits alone"
        raise InputError("features", None, rule, "pass --features FILE, and --real FILE.npz")
    usual = digits()
    if statistics is not None:
        rule = "has no labels, which the digits' features are joined by"
        raise InputError("real", str(real), rule, "drop it, or pass --features too")
    return usual


def demand(
    most: float | None, contract: str, images: int, asked: tuple[options.Networks, Path | None, Path | None]
) -> tuple[Means, float, int] | None:
    """Return what `verify --max-loss` demands: means, loss and images; None where nothing is demanded.

    Raises:
        InputError: another contract than C, a loss or a number of images that shows nothing, and as `means_for` does.
    """
    if most is None:
        return None
    if not contract or Contract.of(contract) is not Contract.QUALITY:
        rule = "states a loss, which contract C alone allows"
        raise InputError("max_loss", most, rule, "pass --contract C too, or sdvar-harness quality")
    check_installed()
    Study([], images, most=most)
    return means_for(*asked), most, images


def claim(
    result: Verification,
    pair: ModelPair,
    stated: tuple[Means, float, int],
    asked: tuple[list[Source], options.Images, options.Sampling],
    conditions: Conditions,
    quiet: bool,
) -> int:
    """Measure the loss of a verification's settings, and put what it proves into its result and its run file.

    LOST becomes a defect of component `quality`; INCONCLUSIVE, a reason to be that. Returns the exit status of a signal
    that ended it early, or 0.
    """
    (means, most, images), (sources, wanted, sampling) = stated, asked
    seed = integers("seeds", wanted.seeds, "0:4")[0]
    request = Request((0,), seed, sampling.cfg, sampling.top_k, sampling.top_p)
    sets = Study(sources, images, wanted.batch, labels_of(wanted.labels, pair), request, BLOCKS, most)
    found = drawn(pair, means, sets, replace(conditions, store=UNKEPT), quiet)
    show_quality(found, plain_console(), quiet)
    claims: Claims = {"broken": [], "open": []}
    for row, verdict in zip(found.rows[1:], found.verdicts, strict=True):
        if not row.yardstick and verdict is not Quality.KEPT:
            claims["broken" if verdict is Quality.LOST else "open"].append(f"{row.name}: {why(row, most)}")
    result.take(claims)
    result.about |= {"quality": found.values(), "claims": claims}
    if (file := conditions.store.file) is not None:
        with closing(RunFile.go_on(file)) as kept:
            kept.note("quality", result.about["quality"])
            kept.note("claims", claims)
    return 128 + found.stopped if found.stopped else 0


def own(policies: str, how: Settings) -> list[Source]:
    """Return the sources of the harness's own decoder: every policy at every draft length.

    Args:
        policies: by commas.
        how: all else; its `draft_len` holds several by commas.

    Raises:
        InputError: a policy without a law to measure.
    """
    made = []
    for name in filter(None, policies.split(",")):
        if name == "greedy":
            rule = "draws one image a label, which is no law"
            raise InputError("policies", name, rule, "drop it: verify compares it token by token")
        for length in filter(None, str(how.draft_len).split(",")):
            made += decoders(DEFAULT, [replace(how, draft_len=length, policy=name)])
    return made


def at_cfgs(text: str) -> list[Source]:
    """Return sequential decoding at other guidance values. Raises `InputError` for another form."""
    made = []
    for each in text.split(","):
        try:
            made.append(Source(f"sequential, cfg {float(each):g}", cfg=float(each)))
        except ValueError:
            raise InputError("find_cfg", text, "must read 0,0.5,1", "pass --find-cfg 0,0.5,1,1.5") from None
    return made


def labels_of(text: str, pair: ModelPair) -> tuple[int, ...]:
    """Return the labels in turn. Raises `InputError` for another form."""
    return tuple(range(pair.target.config.classes)) if text == "all" else integers("labels", text, "0,1")
