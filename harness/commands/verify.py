"""`sdvar-harness verify`: prove a decoder against the reference, or show where it goes wrong.

One module: what each option means is read off the options beside it, and no other command has as many.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import Networks
from harness.commands.records import Group, Option, command
from harness.errors import InputError, StopSignal
from harness.files import absolute_source, check_outputs, check_readable
from harness.processes import started_ahead

if TYPE_CHECKING:
    from harness.decoders import Other, Runner
    from harness.models import ModelPair
    from harness.protocol import Settings
    from harness.quality import Means, Study
    from harness.runs import RunFileOptions, Verification
    from harness.verification import Question

DRAFT_LENGTHS = "1,2,5,10"
LAW_CASES = 2
GRID = "in a grid"  # when a default holds: the covering design has values of its own
TRIED = f"{LAW_CASES}, where nothing is asked"

# Help that is too long to stand within its option.
ADDRESSED = "Which of a seed's random numbers each label takes: 0,5 or 0:4; usual: 0, 1, 2, … It adds no image."
PROPOSED = "Scales proposed per round: 5, by scale 1/2/3/…, or dynamic:1:5; several: 1,2,dynamic."
DESIGN = "Two drafts, many lengths and requests: a covering design."


class VerifyImages(options.Images, applies=GRID):
    """What is drawn, and how; the covering design draws what its blocks say."""

    batch: Annotated[
        int, Option("Images per batch, seeds mixed; 0 = as many as device and memory like.", rare=True)
    ] = 0
    addresses: Annotated[str, Option(ADDRESSED, name="--images")] = ""


class VerifyDecoding(Group, panel=options.DECODED):
    """How it is decoded; the covering design has lengths of its own."""

    draft_len: Annotated[str, Option(PROPOSED, shown=f"{DRAFT_LENGTHS} {GRID}")] = DRAFT_LENGTHS
    bonus: options.Bonus = False
    policy: options.Policy = "coupled"
    graphs: options.Graphs = False
    compile: options.Compile = False


class VerifyDecoder(options.UnderTest):
    """The decoder under test, and what it may take."""

    timeout: options.Timeout = options.TIMEOUT_S
    memory: Annotated[float, Option("GiB that its process may allocate; 0 = no limit.", rare=True)] = 0.0
    allow_write: options.AllowWrite = None
    in_process: options.InProcess = False


class VerifyJudging(Group, panel=options.JUDGED):
    """How it is judged."""

    contract: options.Contract = ""
    sequential: Annotated[bool, Option("The decoder drafts nothing: one draft length is asked.")] = False
    fail_fast: Annotated[bool, Option("Stop at the first batch with a defect.", rare=True)] = False
    locate: options.LocateIfQuick = None
    strict: Annotated[bool, Option("What a decoder leaves behind in its process is a defect.", rare=True)] = False
    may_differ_from: Annotated[
        int | None, Option("Demand the reference's tokens before this scale of one that claims B or C.", rare=True)
    ] = None
    cover: Annotated[bool | None, Option(DESIGN, rare=True, shown="where nothing is asked")] = None
    laws: Annotated[int | None, Option("Try every law in so many cases, too; 0 = none.", rare=True, shown=TRIED)] = None
    budgets: options.Budgets = options.BUDGETS
    against: Annotated[
        str, Option("Judge against this decoder, OTHER:factory, in the reference's place.", rare=True)
    ] = ""
    against_checkout: Annotated[Path | None, Option("Its checkout; alone: of the same sampler.", rare=True)] = None
    against_option: Annotated[list[str] | None, Option("NAME=VALUE for its factory.", rare=True)] = None
    max_loss: options.MaxLoss = None
    max_nats: options.MaxNats = None
    quality_images: Annotated[int, Option("Images that losses are judged on, each setting.", rare=True)] = (
        options.QUALITY_IMAGES
    )
    features: options.Features = None
    real: options.Real = None


class VerifyOutputs(Group, panel=options.WRITTEN):
    """What is written, and by whom the work is done."""

    run: Annotated[Path | None, Option("Keep everything in this file, as it happens.")] = None
    resume: options.Resume = False
    workers: options.Workers = 0
    cluster: options.Cluster = ""
    json: options.Json = None
    html: options.Html = None
    certificate: Annotated[Path | None, Option("Write a certificate, which `check` checks anywhere.")] = None
    challenged: Annotated[int, Option("Images whose tokens a certificate holds in any case.", rare=True)] = 16
    key: Annotated[Path | None, Option("Sign it with this private key (PEM, Ed25519).", rare=True)] = None
    verbose: options.Verbose = False
    quiet: options.Quiet = False


@command
def verify(
    networks: Networks,
    images: VerifyImages,
    decoding: VerifyDecoding,
    tested: VerifyDecoder,
    judging: VerifyJudging,
    outputs: VerifyOutputs,
) -> None:
    """Run a decoder and the sequential reference under shared seeds and judge every token.

    Without options on what is drawn, and how, it is a covering design, few decodes that ask all: two drafts, bonus on
    and off, batches whose images accept different numbers of scales, one decoder for many requests. With any of them it
    is a grid: every seed with every label at every draft length. The verdict says what was not exercised.

    Exit status: 0 the claim holds, 1 a defect, 2 bad input, 3 inconclusive, 130 or 143 interrupted.
    """
    elsewhere = outputs.cluster or outputs.workers > 1
    with ExitStack() as stack:
        # a decoder that will have a process beside this one gets it while this one loads what it needs
        if not (tested.in_process or elsewhere or tested.implementation == options.OWN):
            ahead = started_ahead(options.DECODER_PROCESS, networks.mode.device, tested.allow_write or ())
            stack.enter_context(ahead)
        raise typer.Exit(_verified(networks, images, decoding, tested, judging, outputs))


def _verified(
    networks: Networks, images: VerifyImages, decoding: VerifyDecoding, tested: VerifyDecoder, judging: VerifyJudging,
    outputs: VerifyOutputs,
) -> int:  # fmt: skip
    """Answer what was asked, show and write it; return the exit status."""
    from harness.commands._inputs import batches_for, load_models, options_tested, writable_folders
    from harness.decoders import Limits, Terms, start_runner
    from harness.pool import Parallelism
    from harness.protocol import Contract
    from harness.report import LongWork
    from harness.runs import RunFileOptions, RunInterrupted, take_line
    from harness.signals import silence
    from harness.speculative import parse_policy
    from harness.verification import Question, answer_question, is_published, usual_laws, usual_settings

    paths, key = checked_paths(networks, judging, outputs), signing_key(outputs, networks, images, judging)
    loss = loss_of(networks, images, judging)
    name, pairs = tested.implementation, options_tested(tested)
    if judging.contract and name == options.OWN:
        parse_policy(decoding.policy, judging.contract)
    settings = settings_tested(decoding, name, pairs, judging.sequential)
    if judging.cover:
        check_design(images, decoding, is_published(name), loss is not None)
    budgets = judging.budgets.absolute()  # read after the factory, which may change folder
    terms = Terms(
        Contract.of(judging.contract) if judging.contract else None, judging.sequential, tested.in_process,
        Limits(tested.timeout, tested.memory, writable_folders(tested.allow_write)), budgets,
        against=other_for(judging, name, settings, decoding), strict=judging.strict, first_only=judging.fail_fast,
        may_differ_from=judging.may_differ_from,
    )  # fmt: skip
    parallelism = Parallelism(outputs.workers, outputs.cluster, networks.mode.device)
    store = RunFileOptions(paths.get("run"), outputs.resume, recipe_of(networks, decoding, tested, judging))
    store.check_new()
    pair = load_models(networks, networks.mode, outputs.quiet, name)
    if "draft_len" not in decoding.given and terms.against is None:
        settings = list(usual_settings(name, settings[0], pair.pyramid.S, judging.sequential))
    cover = not asks(networks, images, decoding) if judging.cover is None else judging.cover
    laws = usual_laws(cover, terms) if judging.laws is None else judging.laws
    question = Question(name, tuple(settings), (), terms, cover, laws)
    made_up = cover and loss is None and images.texts is None and "texts" in pair.target.config.reads
    tell_memory(pair, question, outputs)
    requests, why = ([], "") if made_up else batches_for(pair, images, apart=not question.in_process)
    if loss is not None:
        check_claim(judging, lambda: start_runner(pair, name, settings[:1], 1, replace(terms, against=None)))
        loss = loss[0], replace(loss[1], request=replace(loss[1].request, seed=requests[0].seed))
    question = replace(question, requests=tuple(requests), batches=why, loss=loss)
    with ExitStack() as stack:
        if outputs.html is not None and store.file is None:  # a page shows what a file keeps
            store = replace(store, file=Path(stack.enter_context(TemporaryDirectory(prefix="sdvar-"))) / "run.db")
        try:
            with silence(outputs.quiet):
                result = answer_question(pair, question, parallelism, store, partial(LongWork, quiet=outputs.quiet))
            status = 0
        except RunInterrupted as stop:
            result, status = stop.result, stop.status
        write(result, paths, store, outputs, None if status else partial(take_line, models=pair, asked=judging.locate))
        if outputs.certificate is not None and not status:
            from harness.certificate.made import certificate_of

            write_certificate(partial(certificate_of, result, pair), paths, outputs, key)
    return status or result.verdict.exit_status


def tell_memory(pair: ModelPair, question: Question, outputs: VerifyOutputs) -> None:
    """Say on stderr what memory an image takes, where that is much."""
    from harness.runs import memory_note

    note = "" if outputs.cluster else memory_note(pair, not question.in_process)
    if note and not outputs.quiet:
        print(note, file=sys.stderr)


def write(
    result: Verification, paths: Mapping[str, Path], store: RunFileOptions, outputs: VerifyOutputs,
    locate: Callable[..., None] | None,
) -> None:  # fmt: skip
    """Show a result, its defect located, and write it as JSON and as a page."""
    from harness.quality import Measured
    from harness.report import plain_console, say, show_quality, show_verification, write_asked
    from harness.report.html import run_page, seen_in
    from harness.signals import silence

    result.is_kept = "run" in paths
    if locate is not None:
        try:
            with silence(outputs.quiet):
                locate(result, told=tell_search)
        except StopSignal:  # what is known already is shown all the same; the status is the signal's (`main`)
            result.line = "not found: the search was interrupted; --locate asks again"
    if isinstance(result.quality, Measured):
        show_quality(result.quality, plain_console(), outputs.quiet)
    show_verification(result, plain_console(), outputs.quiet, outputs.verbose)
    seen = partial(seen_in, store.file or Path(), result, "run" in paths)  # where a page is asked for, there is a file
    write_asked(paths, outputs.quiet, json=lambda: result.to_json().encode(), html=lambda: run_page(result, seen()))
    if "run" in paths and not outputs.quiet:
        command = shlex.join(["sdvar-harness", "replay", str(outputs.run)])
        again = f"; this repeats its defects: {command}" * (result.verdict.name == "DEFECT")
        say(plain_console(), f"kept {paths['run']}{again}", whole=True)


def tell_search(seconds: float) -> None:
    """Say on stderr how long the search for a line of code takes."""
    long = f"{math.ceil(seconds)} s" if seconds < 90 else f"{math.ceil(seconds / 60)} min"
    with suppress(OSError):  # a stream that is full or closed keeps no verdict back
        print(f"searching the line of code: about {long}", file=sys.stderr, flush=True)


def checked_paths(networks: Networks, judging: VerifyJudging, outputs: VerifyOutputs) -> dict[str, Path]:
    """Return where outputs are to be, by option. Raises `InputError`, for bad budgets, too."""
    from harness.report.html import check_page

    files = {name: getattr(outputs, name) for name in ("json", "run", "html", "certificate")}
    paths = check_outputs(files, {**options.files_of(networks), "budgets": judging.budgets, "key": outputs.key})
    check_page(outputs.html)
    check_readable(judging.budgets, "budgets", "pass a file of sdvar-harness calibrate", "is not there")
    return paths


def signing_key(outputs: VerifyOutputs, networks: Networks, images: VerifyImages, judging: VerifyJudging) -> object:
    """Return the key that signs a certificate; None: nobody does. Raises `InputError` for what none can be made of."""
    from harness.certificate import check_extra, read_key

    file = outputs.certificate
    if file is None:
        outputs.refuse(("key", "challenged"), "is of a certificate", "pass --certificate FILE, too")
        return None
    if outputs.challenged < 1:
        raise InputError("challenged", outputs.challenged, "must be 1 or more", "pass --challenged 16")
    for option, is_asked, what in (
        ("--against", judging.against or judging.against_checkout, "decoder in the reference's place"),
        ("--texts", images.texts, "texts that requests draw from"),
        ("--models", networks.models == "digits-bits", "texts that requests draw from"),
        ("--may-differ-from", judging.may_differ_from is not None, "scale that tokens may differ from"),
    ):
        if is_asked:
            raise InputError("certificate", str(file), f"has no {what}", f"drop it, or {option}")
    check_extra(file)
    return None if outputs.key is None else read_key(outputs.key, private=True)


def write_certificate(
    made: Callable[[Path, int], bytes], paths: Mapping[str, Path], outputs: VerifyOutputs, key: object
) -> None:
    """Write what `made` makes of a path and a number of challenged images; signed, where there is a key."""
    from harness.certificate import signed
    from harness.report import write_asked

    def text() -> bytes:
        statement = made(paths["certificate"], outputs.challenged)
        return signed(statement, key) if key else statement

    write_asked(paths, outputs.quiet, certificate=text)


def stated_loss(judging: VerifyJudging) -> dict[str, float]:
    """Return the losses that are allowed, by option."""
    return {name: most for name in ("max_loss", "max_nats") if (most := getattr(judging, name)) is not None}


def check_claim(judging: VerifyJudging, start: Callable[[], Runner]) -> None:
    """Refuse a loss of what claims more than quality: by `--contract`, else by itself. Raises `InputError`."""
    from harness.protocol import Contract

    text = judging.contract
    if not text:
        with closing(start()) as runner:
            text = runner.built.contracts[0]
    claim = Contract.of(text)
    if claim is not Contract.QUALITY:
        rule = f"states a loss, which contract C alone allows, and the claim is {claim.letter} ({claim})"
        raise InputError(*next(iter(stated_loss(judging).items())), rule, "pass --contract C, too")


def loss_of(networks: Networks, images: VerifyImages, judging: VerifyJudging) -> tuple[Means, Study] | None:
    """Return what is asked of quality, on the labels that are drawn; None: nothing. Raises `InputError`."""
    least = 2 * options.BLOCKS
    if stated_loss(judging) and judging.quality_images < least:
        rule = f"must be at least {least}, two a block"
        raise InputError("quality_images", judging.quality_images, rule, f"pass --quality-images {least}, or drop it")
    from harness.commands._inputs import integers
    from harness.commands.quality import means_for
    from harness.protocol import Request
    from harness.quality import NO_MEANS, Study

    if not stated_loss(judging):
        return None
    labels = () if images.labels == "all" else integers("labels", images.labels, "0,1")
    request = Request((0,), 0, images.cfg, images.top_k, images.top_p)
    allowed = judging.max_loss, judging.max_nats
    study = Study([], judging.quality_images, images.batch, labels, request, options.BLOCKS, *allowed)
    means = NO_MEANS if judging.max_loss is None else means_for(networks, judging.features, judging.real)
    return means, study


def asks(networks: Networks, images: VerifyImages, decoding: VerifyDecoding) -> bool:
    """Tell whether an option says what is decoded, or how: with none of them, the covering design is."""
    return bool(networks.given | images.given | (networks.mode.given - {"device"}) | (decoding.given - {"policy"}))


QUALITY = {"seeds", "labels", "batch", "cfg", "top_k", "top_p", "draft_len", "bonus"}  # what a stated loss is asked by


def check_design(images: VerifyImages, decoding: VerifyDecoding, published: bool, has_loss: bool) -> None:
    """Refuse options of what is drawn, and how, that neither a covering design reads nor a stated loss beside it.

    What a pyproject.toml says of these, `--cover` is there to pass over. Raises `InputError`.
    """
    read = {"policy"} | ({"draft_len"} if published else set()) | (QUALITY if has_loss else set())
    for group in (images, decoding):
        unread = (group.typed | (group.given & {"graphs", "compile"})) - read
        group.refuse(unread, "is what --cover, a design with settings and requests of its own, does not read",
                     "drop it, or --cover")  # fmt: skip


REPEATED = ("graphs", "compile", "contract", "sequential", "strict", "may_differ_from", "implementation", "timeout",
            "memory", "in_process", "budgets")  # fmt: skip


def recipe_of(networks: options.Pair, *others: Group) -> dict[str, str]:
    """Return the options that repeat a run and are not the usual ones: text, empty for a flag; files absolute.

    What is drawn, draft lengths and policies are left out, checkouts and factories' options, too: each setting and each
    request has its own.
    """
    changed = networks.changed()
    for group in others:
        changed |= {name: value for name, value in group.changed().items() if name in REPEATED}
    return {
        name: "" if value is True
        else absolute_source(str(value)) if isinstance(value, Path) or name in options.FILES
        else str(value)
        for name, value in changed.items()
    }  # fmt: skip


def settings_for(
    decoding: VerifyDecoding, name: str, pairs: tuple[tuple[str, str], ...], sequential: bool
) -> list[Settings]:
    """Return one setting a draft_len, `pairs` being the options of the factory. Raises `InputError`."""
    from harness.commands._inputs import integers
    from harness.protocol import Settings
    from harness.verification import is_published, usual_settings

    draft_len, published = decoding.draft_len, is_published(name)
    policy = "" if published else decoding.policy
    if draft_len == DRAFT_LENGTHS and (published or sequential):
        return list(usual_settings(name, Settings(1, decoding.bonus, policy, pairs), 1))
    lengths: tuple[int | str, ...] = tuple(draft_len.split(","))
    if all(character in "0123456789:,-" for character in draft_len):
        lengths = integers("draft_len", draft_len, "1,2,5")
    return [Settings(length, decoding.bonus, policy, pairs) for length in lengths]


def settings_tested(
    decoding: VerifyDecoding, name: str, pairs: tuple[tuple[str, str], ...], sequential: bool
) -> list[Settings]:
    """Return the settings of the decoder under test. Raises `InputError` for what a published one never reads, too."""
    from harness.verification import is_published, takes_draft_len

    unread = ["policy", "bonus"] if is_published(name) else []
    unread += [] if takes_draft_len(name) else ["draft_len"]
    rule = f"has no effect on {name}, which has a rule of its own"
    decoding.refuse(unread, rule, "drop it; --option NAME=VALUE sets what it has")
    settings = settings_for(decoding, name, pairs, sequential)
    if name != options.OWN and (decoding.graphs or decoding.compile):
        word, rule = "graphs" if decoding.graphs else "compile", "is how the harness's own decoder works"
        raise InputError(word, True, rule, "drop it; yours takes --option NAME=VALUE")
    return [replace(setting, graphs=decoding.graphs, compiled=decoding.compile) for setting in settings]


def other_for(judging: VerifyJudging, name: str, settings: list[Settings], decoding: VerifyDecoding) -> Other | None:
    """Return the decoder to judge against, with as many settings. Raises `InputError` where they do not pair up."""
    from harness.commands._inputs import factory_options
    from harness.decoders import Other

    if not judging.against and judging.against_checkout is None and not judging.against_option:
        return None
    other = judging.against or name
    pairs = factory_options(other, judging.against_checkout, judging.against_option)
    theirs = settings_for(decoding, other, pairs, judging.sequential)
    if len(theirs) == 1:  # its draft_len is that of the setting that it is compared under, as with one --draft-len
        theirs = [replace(theirs[0], draft_len=setting.draft_len) for setting in settings]
    if len(theirs) != len(settings):
        rule = f"has {len(theirs)} settings, and the decoder {len(settings)}"
        raise InputError("against", other, rule, "pass one --draft-len")
    return Other(other, tuple(theirs))
