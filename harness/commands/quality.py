"""`sdvar-harness quality`: how good a decoder's images are, beside those of sequential decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import Networks, Pair
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs

if TYPE_CHECKING:
    from harness.quality import Means, Source


class QualityImages(Group, panel=options.DRAWN):
    """What is drawn, and how the harness's own decoder decodes."""

    images: Annotated[int, Option("Images of every decoder, labels in turn.")] = options.QUALITY_IMAGES
    batch: options.Batch = 0
    seed: Annotated[int, Option("Seed of all images; other seeds lie 2^32 away.", rare=True)] = 0
    labels: options.Labels = "all"
    cfg: options.Cfg = 1.5
    top_k: options.TopK = 0
    top_p: options.TopP = 0.0
    policies: Annotated[
        str, Option("Policies of the harness's own decoder, by commas; empty: none.", panel=options.DECODED)
    ] = ",".join(options.STUDIED)
    draft_len: Annotated[str, Option("Draft lengths, by commas.", panel=options.DECODED)] = "5"
    bonus: options.Bonus = False
    graphs: options.Graphs = False
    compile: options.Compile = False


class QualityDecoders(Group, panel=options.TESTED):
    """Decoders under test, beside the harness's own."""

    implementation: Annotated[
        list[str] | None, Option("A decoder under test, package.module:factory; several times.")
    ] = None
    checkout: options.Checkout = None
    option: options.FactoryOptions = None
    stub: options.Stubs = None
    timeout: options.Timeout = options.TIMEOUT_S
    allow_write: options.AllowWrite = None
    in_process: options.InProcess = False


class QualityJudging(Group, panel=options.JUDGED):
    """How images are measured and judged, what is written, and by whom the work is done."""

    max_loss: options.MaxLoss = None
    max_nats: options.MaxNats = None
    control: Annotated[int, Option("How often sequential decoding is measured under other seeds.", rare=True)] = 1
    features: options.Features = None
    real: options.Real = None
    blocks: Annotated[int, Option("Blocks of images that intervals are made from.", rare=True)] = options.BLOCKS
    run: Annotated[Path | None, Option("Keep what is drawn in this file, as it happens.", panel=options.WRITTEN)] = None
    resume: options.Resume = False
    workers: options.Workers = 0
    cluster: options.Cluster = ""
    json: options.Json = None
    quiet: options.Quiet = False


@command
def quality(networks: Networks, images: QualityImages, tested: QualityDecoders, judging: QualityJudging) -> None:
    """Measure how good images are: distances to real data and to the target's law, with intervals and a verdict.

    Exit status: 0 every decoder under test is KEPT, or no loss was stated; 1 one is LOST; 2 bad input; 3 one is
    INCONCLUSIVE; 130 or 143 interrupted.
    """
    from harness import report
    from harness.commands._inputs import check_most, classes_of, labels_for, load_models, writable_folders
    from harness.decoders import Limits, Terms
    from harness.pool import Parallelism
    from harness.protocol import Request
    from harness.quality import Conditions, Study, run_study
    from harness.runs import RunFileOptions
    from harness.speculative.sampler import build_decoder

    files = {name: getattr(judging, name) for name in ("json", "run")}
    paths = check_outputs(files, {**options.files_of(networks), "features": judging.features, "real": judging.real})
    check_most("images", images.images, str(options.QUALITY_IMAGES))
    alone = judging.max_nats is not None and judging.max_loss is None
    means = means_for(networks, judging.features, judging.real, alone)
    sources = sources_for(images, tested, judging)
    limits = Limits(tested.timeout, allow_write=writable_folders(tested.allow_write))
    conditions = Conditions(
        Parallelism(judging.workers, judging.cluster, networks.mode.device),
        RunFileOptions(paths.get("run"), judging.resume),
        Terms(in_process=tested.in_process, limits=limits),
    )
    request = Request((0,), images.seed, images.cfg, images.top_k, images.top_p)
    pair = load_models(networks, networks.mode, judging.quiet)
    labels = labels_for(images.labels, classes_of(pair))
    allowed = judging.max_loss, judging.max_nats
    study = Study(sources, images.images, images.batch, labels, request, judging.blocks, *allowed)
    for source in sources:  # what the own decoder refuses is refused before anything is drawn
        if source.factory == options.OWN:
            build_decoder(pair, source.settings)
    console, total = report.plain_console(), study.total(means)
    if not judging.quiet:
        report.say(console, f"{study.images:,} images from each of {total // study.images} decoders: {total:,}")
    with report.LongWork("images", total, judging.quiet) as work:
        measured = run_study(pair, means, study, conditions, work.advance)
    if measured.stopped:
        remedy = "; --resume goes on with the run" if judging.run else ""
        report.say(console, f"interrupted: {measured.rows[0].images} of {study.images} images a decoder{remedy}")
    report.show_quality(measured, console, judging.quiet)
    if measured.verdict:
        report.say_after(console, "quality", measured.verdict.exit_status, judging.quiet)
    report.write_asked(paths, judging.quiet, json=measured.document)
    status = measured.verdict.exit_status if measured.verdict else 0
    raise typer.Exit(128 + measured.stopped if measured.stopped else status)


def means_for(networks: Pair, features: Path | None, real: Path | None, nats_suffice: bool = False) -> Means:
    """Return what images are measured by: nothing, where `nats_suffice` and nothing else is at hand.

    Raises `InputError` for other networks than digits without `features`, and for missing packages.
    """
    from harness.quality import NO_MEANS, Means, check_torchmetrics, digits_means, load_inception, load_statistics

    draws_digits = networks.given_files().keys() <= {"draft"}  # features are of images, whoever drafts them
    name = networks.models if draws_digits else "custom"
    knows_digits = name in options.SHIPPED
    if nats_suffice and features is None and not knows_digits:
        return NO_MEANS
    check_torchmetrics()
    statistics = load_statistics(real) if real is not None else None
    if features is not None:
        return Means(load_inception(features), statistics)
    if not knows_digits:
        rule = f"are needed for {name}: the digits classifier that ships knows digits alone"
        raise InputError("features", None, rule, "pass --features FILE, and --real FILE.npz")
    usual = digits_means()
    if statistics is not None:
        rule = "has no labels, which the digits' features are joined by"
        raise InputError("real", str(real), rule, "drop it, or pass --features too")
    return usual


def sources_for(images: QualityImages, tested: QualityDecoders, judging: QualityJudging) -> list[Source]:
    """Return what is drawn besides: controls, the draft and decoders. Raises `InputError`."""
    from harness.commands._inputs import factory_options
    from harness.protocol import Settings
    from harness.quality import DRAFT, Source, control_sources, decoder_sources
    from harness.verification import is_published, usual_settings

    policies, lengths = (list(filter(None, text.split(","))) for text in (images.policies, images.draft_len))
    if "greedy" in policies:
        rule = "draws one image a label, which is no law"
        raise InputError("policies", "greedy", rule, "drop it: verify compares it token by token")
    how = Settings(5, images.bonus, graphs=images.graphs, compiled=images.compile)
    own = [replace(how, draft_len=length, policy=policy) for policy in policies for length in lengths]
    sources = [*control_sources(judging.control), Source(DRAFT, draft=True), *decoder_sources(options.OWN, own)]
    for name in tested.implementation or []:
        like = Settings(5, policy="", options=factory_options(name, tested.checkout, tested.option, tested.stub))
        sources += decoder_sources(name, usual_settings(name, like, 5) if is_published(name) else [like])
    return sources
