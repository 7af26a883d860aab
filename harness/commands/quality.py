"""`sdvar-harness quality`: how good a decoder's images are, beside those of sequential decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import options
from harness.commands.options import (
    BLOCKS,
    DECODED,
    DRAWN,
    EVERY_LENGTH,
    JUDGED,
    ONE_LENGTH,
    QUALITY_IMAGES,
    TESTED,
    TIMEOUT_S,
    WRITTEN,
    Networks,
    Pair,
)
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs, write_whole

if TYPE_CHECKING:
    from harness.models.pair import ModelPair
    from harness.protocol.decoder import Settings
    from harness.quality.gather import Conditions
    from harness.quality.measured import Measured
    from harness.quality.sources import Source
    from harness.quality.study import Means, Study

EVERY = ",".join(name for name in (*EVERY_LENGTH, *ONE_LENGTH) if name != "greedy")


@dataclass(frozen=True)
class QualityImages(Group):
    """What is drawn."""

    panel = DRAWN
    images: Annotated[int, Option("Images of every decoder, labels in turn.")] = QUALITY_IMAGES
    batch: options.Batch = 0
    seed: Annotated[int, Option("Seed of all images; other seeds lie 2^32 away.", rare=True)] = 0
    labels: options.Labels = "all"
    cfg: options.Cfg = 1.5
    top_k: options.TopK = 0
    top_p: options.TopP = 0.0


@dataclass(frozen=True)
class QualityDecoding(Group):
    """How the harness's own decoder decodes."""

    panel = DECODED
    policies: Annotated[str, Option("Policies of the harness's own decoder, by commas; empty: none.")] = EVERY
    draft_len: Annotated[str, Option("Draft lengths, by commas.")] = "5"
    bonus: options.Bonus = False
    graphs: options.Graphs = False
    compile: options.Compile = False


@dataclass(frozen=True)
class QualityDecoders(Group):
    """Decoders under test, beside the harness's own."""

    panel = TESTED
    implementation: Annotated[
        list[str] | None, Option("A decoder under test, package.module:factory; several times.")
    ] = None
    checkout: options.Checkout = None
    option: options.FactoryOptions = None
    timeout: Annotated[float, Option("Seconds of one decode in a decoder's own process.", rare=True)] = TIMEOUT_S
    in_process: Annotated[bool, Option("Run decoders under test in this process.", rare=True)] = False


@dataclass(frozen=True)
class QualityJudging(Group):
    """How images are measured and judged."""

    panel = JUDGED
    max_loss: options.MaxLoss = None
    control: Annotated[int, Option("How often sequential decoding is measured under other seeds.", rare=True)] = 1
    find_cfg: Annotated[str, Option("Measure sequential decoding at these guidance values alone.", rare=True)] = ""
    features: options.Features = None
    real: options.Real = None
    blocks: Annotated[int, Option("Blocks of images that intervals are made from.", rare=True)] = BLOCKS


@dataclass(frozen=True)
class QualityOutputs(Group):
    """What is written, and by whom the work is done."""

    panel = WRITTEN
    run: Annotated[Path | None, Option("Keep what is drawn in this file, as it happens.")] = None
    resume: options.Resume = False
    workers: options.Workers = 0
    cluster: options.Cluster = ""
    json: options.Json = None
    into: options.Into = None
    picture: Annotated[Path | None, Option("Write target calls against loss to this SVG file.")] = None
    quiet: options.Quiet = False


@command(
    "quality --policies coupled,kl:0.1 --images 2000",
    "quality --implementation mydecoder:factory --policies '' --max-loss 0.1",
    "quality --run drawn.db --resume --json quality.json --picture quality.svg",
)
def quality(
    networks: Networks,
    images: QualityImages,
    decoding: QualityDecoding,
    tested: QualityDecoders,
    judging: QualityJudging,
    outputs: QualityOutputs,
) -> None:
    """Measure how good images are: distances to real data and to the target's law, with intervals and a verdict.

    Exit status: 0 every decoder under test is KEPT, or no loss was stated; 1 one is LOST; 2 bad input; 3 one is
    INCONCLUSIVE; 130 or 143 interrupted.
    """
    from harness.commands.inputs import check_drawing, check_most, load_models
    from harness.decoders.process import Limits
    from harness.decoders.terms import Terms
    from harness.pool.employ import Execution
    from harness.protocol.decoder import Settings
    from harness.protocol.request import Request
    from harness.quality.distances import check_torchmetrics
    from harness.quality.gather import Conditions
    from harness.quality.sources import DRAFT, Source, control_sources
    from harness.quality.study import Study
    from harness.report.quality import best_cfg_line, quality_markdown, show_quality
    from harness.report.tables import replaced_parts
    from harness.report.terminal import plain_console, say
    from harness.runs.keep import RunStore
    from harness.speculative.sampler import build_decoder

    files = {"json": outputs.json, "run": outputs.run, "into": outputs.into, "picture": outputs.picture}
    inputs = {**networks.files(), "features": judging.features, "real": judging.real}
    paths = check_outputs(files, inputs)
    check_drawing(outputs.picture)
    check_torchmetrics()
    check_most("images", images.images, str(QUALITY_IMAGES))
    if outputs.into is not None:
        replaced_parts(outputs.into, {"quality": ""})
    means = means_for(networks, judging.features, judging.real)
    how = Settings(decoding.draft_len, decoding.bonus, graphs=decoding.graphs, compiled=decoding.compile)
    own_sources = own(decoding.policies, how)
    sources = control_sources(judging.control)
    sources += at_cfgs(judging.find_cfg) if judging.find_cfg else [Source(DRAFT, draft=True), *own_sources]
    sources += under_test(tested)
    conditions = Conditions(
        Execution(outputs.workers, outputs.cluster, networks.mode.device),
        RunStore(paths.get("run"), outputs.resume),
        Terms(in_process=tested.in_process, limits=Limits(tested.timeout)),
    )
    request = Request((0,), images.seed, images.cfg, images.top_k, images.top_p)
    pair = load_models(networks, networks.mode)
    labels = labels_of(images.labels, pair)
    study = Study(sources, images.images, images.batch, labels, request, judging.blocks, judging.max_loss)
    for source in own_sources:  # what the own decoder refuses is refused before anything is drawn
        build_decoder(pair, source.settings)
    measured = drawn(pair, means, study, conditions, outputs.quiet)
    show_quality(measured, plain_console(), outputs.quiet)
    if judging.find_cfg:
        say(plain_console(), best_cfg_line(measured, sources))
    if "json" in paths:
        write_whole(paths["json"], measured.document())
    if "into" in paths:
        write_whole(paths["into"], replaced_parts(paths["into"], {"quality": quality_markdown(measured)}).encode())
    if "picture" in paths:
        from harness.bench.charts import svg, trade_off_chart  # matplotlib is asked for where one draws

        write_whole(paths["picture"], svg(trade_off_chart(measured)))
    status = measured.verdict.exit_status if measured.verdict else 0
    raise typer.Exit(128 + measured.stopped if measured.stopped else status)


def drawn(pair: ModelPair, means: Means, study: Study, conditions: Conditions, quiet: bool) -> Measured:
    """Draw and measure under a progress bar. Raises as `run` does."""
    from harness.quality.study import run_study
    from harness.report.progress import LongWork
    from harness.report.terminal import plain_console, say

    with LongWork("images", study.total, quiet) as work:
        measured = run_study(pair, means, study, conditions, work.advance)
    if measured.stopped:
        kept = "; --resume goes on with the run" if conditions.store.file else ""
        say(plain_console(), f"interrupted: {measured.rows[0].images} of {study.images} images a decoder{kept}")
    return measured


def means_for(networks: Pair, features: Path | None, real: Path | None) -> Means:
    """Return what images are measured by. Raises `InputError` for other networks than digits without `features`."""
    from harness.quality.features import load_inception, load_statistics
    from harness.quality.study import Means, digits_means

    statistics = load_statistics(real) if real is not None else None
    if features is not None:
        return Means(load_inception(features), statistics)
    name = networks.models if not any(networks.files().values()) else "custom"
    if name not in ("digits", "digits-close"):
        rule = f"are needed for {name}: the digits classifier that ships knows digits alone"
        raise InputError("features", None, rule, "pass --features FILE, and --real FILE.npz")
    usual = digits_means()
    if statistics is not None:
        rule = "has no labels, which the digits' features are joined by"
        raise InputError("real", str(real), rule, "drop it, or pass --features too")
    return usual


def own(policies: str, how: Settings) -> list[Source]:
    """Return the sources of the harness's own decoder: every policy at every draft length.

    Args:
        policies: by commas.
        how: all else; its `draft_len` holds several by commas.

    Raises:
        InputError: a policy without a law to measure.
    """
    from harness.quality.study import decoder_sources

    sources = []
    for name in filter(None, policies.split(",")):
        if name == "greedy":
            rule = "draws one image a label, which is no law"
            raise InputError("policies", name, rule, "drop it: verify compares it token by token")
        for length in filter(None, str(how.draft_len).split(",")):
            sources += decoder_sources(options.OWN, [replace(how, draft_len=length, policy=name)])
    return sources


def under_test(tested: QualityDecoders) -> list[Source]:
    """Return the sources of the decoders under test. Raises `InputError` for an option of another form."""
    from harness.commands.inputs import decoder
    from harness.protocol.decoder import Settings
    from harness.quality.study import decoder_sources

    sources = []
    for name in tested.implementation or []:
        each = decoder(name, tested.checkout, tested.option)
        sources += decoder_sources(name, each.settings() if each.published else [Settings(5, False, "", each.options)])
    return sources


def at_cfgs(text: str) -> list[Source]:
    """Return sequential decoding at other guidance values. Raises `InputError` for another form."""
    from harness.quality.sources import Source

    try:
        return [Source(f"sequential, cfg {float(each):g}", cfg=float(each)) for each in text.split(",")]
    except ValueError:
        raise InputError("find_cfg", text, "must read 0,0.5,1", "pass --find-cfg 0,0.5,1,1.5") from None


def labels_of(text: str, pair: ModelPair) -> tuple[int, ...]:
    """Return the labels in turn. Raises `InputError` for another form."""
    from harness.commands.inputs import integers

    return tuple(range(pair.target.config.classes)) if text == "all" else integers("labels", text, "0,1")
