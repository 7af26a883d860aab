"""The one question: is this decoder right, and if not, where does it first go wrong?

Promise: every door (command, API, notebook, plugin) asks through `answer_question`, so that one decoder has one
verdict. What is asked is a `Question`, who does it a `Parallelism`, what is kept says `RunFileOptions`. Whatever goes
wrong is an exception, never an exit. How far `verify` is says a line in a notebook, elsewhere one a minute on stderr.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from harness import runs
from harness.adapters import PUBLISHED_PREFIX, has_rounds, published_settings
from harness.decoders import OWN_DECODER, Factory, Terms, is_own_decoder, start_runner
from harness.errors import InputError
from harness.judge import Divergence, Verdict
from harness.laws import LAW_CASES, LAWS, LawsInterrupted, LawsPlace, try_laws_quickly
from harness.models import ModelPair
from harness.pool import ALONE, Parallelism
from harness.protocol import Request, Settings, Trace
from harness.quality import Conditions, Means, Quality, Study, decoder_sources, run_study
from harness.report import Later, Watch, watch_of
from harness.runs import TERMS, Verification
from harness.schema import record_of

LENGTHS = (1, 2, 5, 10)  # draft lengths where none is asked for
FEW_LENGTHS: tuple[int | str, ...] = (1, 2, 5)  # of published code, in a covering design
SEEDS = range(4)  # seeds where no request is made: every label under each
MOST_LAWS = 10**6  # cases
# Seconds of a law in one case on two cores, in this process and in the decoder's own (77 laws in two cases: 17 s, and
# 47 to 67 s where four others share the cores): for the time left alone.
LAW_S, LAW_APART_S = 0.11, 0.35

Item = TypeVar("Item", Settings, Request)


@dataclass(frozen=True)
class Question:
    """All that is asked of one decoder."""

    decoder: Factory | str  # its factory, or the name of one: package.module:factory, published:var
    # at least one. Of a covering design the first says policy and options, and the design all else
    settings: tuple[Settings, ...]
    requests: tuple[Request, ...] = ()  # what every setting decodes; a covering design has its own
    terms: Terms = TERMS  # how the decodes are judged
    cover: bool = False  # decode the covering design
    laws: int = 0  # try every law in so many cases, too; 0 = none
    # what is asked of its quality under contract C, but for the decoder itself, and by which means; None = nothing is
    loss: tuple[Means, Study] | None = None
    # of every setting, the draft's noise (`Plan.drafts`); empty = the pair's own draft
    drafts: tuple[float | None, ...] = ()
    batches: str = "as asked for"  # why batches are as large as they are, one clause for the result

    def __post_init__(self) -> None:
        if self.laws < 0:
            raise InputError("laws", self.laws, "must be 0 cases or more", f"pass {LAW_CASES}")
        if self.laws > MOST_LAWS:
            raise InputError("laws", self.laws, f"must be {MOST_LAWS} at most", f"pass --laws {LAW_CASES}")

    @property
    def law_seconds(self) -> float:
        """How long a law may take in its cases, as far as others took."""
        return self.laws * (LAW_S if self.in_process or is_own_decoder(self.decoder) else LAW_APART_S)

    def check_for(self, S: int) -> None:
        """Refuse a first scale that may differ where it is none of S, or the first of all. Raises `InputError`."""
        si = self.terms.may_differ_from
        if si is not None and not (type(si) is int and 0 < si < S):
            raise InputError(
                "may_differ_from", si, f"must be a scale after the first, 1..{S - 1}", "pass one, or drop it"
            )

    @property
    def in_process(self) -> bool:
        """Whether every decoder runs in this process: the harness's own does."""
        others = [self.decoder, *([self.terms.against.name] if self.terms.against else [])]
        return self.terms.in_process or all(map(is_own_decoder, others))

    def decodes(self, models: ModelPair) -> runs.Decodes:
        """Return what is decoded on these networks."""
        if not self.cover:
            return runs.Decodes(self.decoder, runs.Plan.of(self.settings, self.requests, self.drafts), self.terms)
        first, alone = self.settings[0], self.terms.against is None
        if is_published(self.decoder):  # at several draft lengths where it takes one and none is asked for
            asks = any(setting.draft_len != "" or setting.option("gamma") for setting in self.settings)
            lengths = FEW_LENGTHS if takes_draft_len(self.decoder) and not asks else ("",)
            asked = [replace(each, draft_len=n or each.draft_len) for each in self.settings for n in lengths]
            blocks = runs.covering_with(models, asked, not self.terms.sequential, alone)
        else:
            whole = alone and is_own_decoder(self.decoder)
            blocks = runs.covering(models, first.policy, options=first.options, whole=whole)
            if self.terms.sequential:  # it has no use for a draft, nor for another length of one
                blocks = (replace(blocks[0], settings=blocks[0].settings[:1]),)
        return runs.Decodes(self.decoder, runs.plan_of(blocks), self.terms)


def is_published(decoder: Factory | str) -> bool:
    """Tell whether a decoder is published code, named as ``published:var``."""
    return isinstance(decoder, str) and decoder.startswith(f"{PUBLISHED_PREFIX}:")


def takes_draft_len(decoder: Factory | str) -> bool:
    """Tell whether a decoder reads `Settings.draft_len`, as far as its name tells: of published samplers one alone."""
    return not isinstance(decoder, str) or not is_published(decoder) or has_rounds(decoder.partition(":")[2])


def usual_settings(
    decoder: Factory | str, like: Settings, scales: int, sequential: bool = False
) -> tuple[Settings, ...]:
    """Return the settings where none are asked for, `like` one but for the draft length; published code has its own.

    A `sequential` decoder drafts nothing, and is asked one length.
    """
    if isinstance(decoder, str) and is_published(decoder):
        return tuple(published_settings(decoder.partition(":")[2], like.options))
    lengths = dict.fromkeys(min(length, scales) for length in (LENGTHS[:1] if sequential else LENGTHS))
    return tuple(replace(like, draft_len=length) for length in lengths)


def usual_laws(cover: bool, terms: Terms) -> int:
    """Return in how many cases laws are tried where nobody says; two decoders judged against each other claim none."""
    return LAW_CASES if cover and terms.against is None else 0


def verify(
    models: ModelPair,  # networks of both sides; the decoder under test gets copies
    factory: Factory | str = OWN_DECODER,  # builds the decoder for one setting, or its name `package.module:factory`
    settings: Settings | Sequence[Settings] | None = None,  # None beside requests = draft lengths 1, 2, 5 and 10
    requests: Request | Sequence[Request] | None = None,  # None beside settings = every label, seeds 0 to 3
    # called after every decode; None = a line in a notebook, one a minute on stderr elsewhere
    progress: Callable[[], None] | None = None,
    terms: Terms = TERMS,  # how the run is judged
) -> Verification:
    """Run a decoder and the reference under the same random numbers, and judge every token.

    Without settings and requests this asks what ``sdvar-harness verify`` asks without options: the covering design, and
    every law.

    Returns:
        The result: `verdict`, `first_divergence`, counts; `to_json()`, `to_frame()`.

    Raises:
        InputError: a setting or a request that the decoder or the networks refuse; a decoder that claims less than is
            demanded; a stored budget that is too wide.
        RunInterrupted: Ctrl-C, or a notebook's stop button; `result` is what was judged until then.

    Effects: a process for a decoder that is not the harness's own; it has ended when this returns.
    """
    cover = settings is None and requests is None
    if settings is None:
        settings = usual_settings(factory, Settings(LENGTHS[0]), models.pyramid.S, terms.sequential)
    laws = usual_laws(cover, terms) if terms.laws is None else terms.laws
    question = Question(factory, _listed(settings, Settings), (), terms, cover, laws)
    if not cover:
        if requests is None:  # every label under four seeds, in batches that device and memory like
            whole, size = (
                models.conditioned(Request(tuple(range(models.conditions)))),
                runs.default_batch(models, not question.in_process),
            )
            requests = tuple(runs.cut_batches(whole, SEEDS, size.images))
        question = replace(question, requests=_listed(requests, Request))
    return answer_question(models, question, watch=watch_of(progress))


def _listed(given: Item | Sequence[Item], kind: type[Item]) -> tuple[Item, ...]:
    return (given,) if isinstance(given, kind) else tuple(given)  # type: ignore[arg-type]  # no record is a sequence


def answer_question(
    models: ModelPair, question: Question, parallelism: Parallelism = ALONE, store: runs.RunFileOptions = runs.UNKEPT,
    watch: Watch | None = None,
) -> Verification:  # fmt: skip
    """Answer a question: decode and judge, try laws, measure quality; what is worst of these is the verdict.

    A defect of the decodes ends it, and what an interrupted run has not come to is not begun. `watch` shows how far it
    is: it is called once for every stage with what is counted and how many there are.

    Raises `InputError` as `verify` does, and for a run file of another run, or one that is being written;
    `RunInterrupted` at SIGINT or SIGTERM, which holds what was found until then.

    Effects: processes, which have ended when this returns; the run file.
    """
    shown = watch or watch_of(lambda: None)
    question.check_for(models.pyramid.S)
    result = _decoded(models, question, parallelism, store, shown)
    for add in (_add_memory, _add_laws, _add_quality):
        if result.verdict is not Verdict.DEFECT:
            add(result, models, question, Conditions(parallelism, store, question.terms), shown)
    if store.file is not None and result.sealed:
        first = result.first_divergence
        outcome = {"verdict": result.verdict.value, "first": first.brief if first else ""}
        _note(store.file, result, exercised=result.exercised.as_dict(), outcome=outcome)
    return result


def _decoded(
    models: ModelPair, question: Question, parallelism: Parallelism, store: runs.RunFileOptions, watch: Watch
) -> Verification:
    decodes, verified = question.decodes(models), runs.verify_coverage_plan if question.cover else runs.verify_decodes
    batches = "those of the design" if question.cover else question.batches
    steps = question.loss[1].total(question.loss[0]) if question.loss else 0
    later = Later(len(LAWS) * question.law_seconds, steps)
    with watch("images", decodes.plan.images, later=later) as bar:
        try:
            result = verified(
                models, decodes, parallelism, store,
                lambda step: bar.advance(step.images, step.defects, off=step.off, first=step.first),
            )  # fmt: skip
        except runs.RunInterrupted as stop:
            stop.result.batches, stop.result.tried, stop.result.met = batches, bar.done, bar.first
            raise
    result.batches = batches
    return result


def _add_memory(
    result: Verification, models: ModelPair, question: Question, conditions: Conditions, watch: Watch
) -> None:
    """Ask an accelerator for one request alone and after another one: what it answers may not depend on that."""
    if question.terms.may_differ_from is None:
        return
    plan = question.decodes(models).plan
    request = replace(plan.tasks[0].request, seeds=None, images=None)
    count = models.target.config.classes or len(request.texts)
    labels = request.labels and tuple((label + 1) % count for label in request.labels)
    other = replace(request, seed=request.seed + 1, labels=labels)
    allowed = result.budget.logits if result.budget else 0.0
    alone, again = (_answer(models, question, plan.settings[0], few) for few in ([request], [other, request]))
    far = _apart(alone, again, allowed)
    if alone is None or again is None or far is None:
        return  # a decode that ends half-way is judged elsewhere
    anew = _answer(models, question, plan.settings[0], [request])
    if anew is not None and _apart(alone, anew, allowed) is None:
        row, draw = far
        si, (position, channel) = models.pyramid.draws.level_of(draw), models.pyramid.place(draw)
        words = f"labels {other.labels}, seed {other.seed}" if other.labels else f"seed {other.seed}"
        detail = f"the answer is another one than a new decoder's after a request of {words}"
        actual, expected = (int(each.tokens_BL[row, draw]) for each in (again, alone))
        (seed, image), channel = request.addresses[row], channel if models.pyramid.channels > 1 else -1
        label = request.labels[row] if request.labels else -1
        first = Divergence("reuse", detail, seed, image, label, si, position, actual, expected, channel=channel)
        result.early.append(first)


def _answer(models: ModelPair, question: Question, settings: Settings, requests: Sequence[Request]) -> Trace | None:
    """Return what a new decoder answers to the last of some requests; None where that decode does not end well."""
    with closing(start_runner(models, question.decoder, [settings], requests[0].B, question.terms)) as runner:
        ended = [runner.decode(0, request) for request in requests][-1]
    return ended if isinstance(ended, Trace) else ended.whole_trace


def _apart(one: Trace | None, other: Trace | None, allowed: float) -> tuple[int, int] | None:
    """Return image and draw of the first token, or logits by more than `allowed`, that two answers do not share."""
    if one is None or other is None or one.tokens_BL.shape != other.tokens_BL.shape:
        return None
    far_BL = one.tokens_BL != other.tokens_BL
    if one.intermediates is not None and other.intermediates is not None:
        far_RL = ((one.shown.rows_RLV - other.shown.rows_RLV).abs() > allowed).any(-1)
        far_BL = far_BL | far_RL.unflatten(0, (-1, len(far_BL))).any(0)
    places = sorted((draw, row) for row, draw in torch.nonzero(far_BL).tolist())
    return places[0][::-1] if places else None


def _add_laws(
    result: Verification, models: ModelPair, question: Question, conditions: Conditions, watch: Watch
) -> None:
    """Try every law in some cases; what the file of a run that is gone on with says already is not tried again."""
    file, count, tried = conditions.store.file, question.laws, None
    if file is not None:
        with closing(runs.RunFile.go_on(file)) as kept:
            noted = kept.noted("laws")
            tried = None if noted is None else record_of(runs.LawsTried, noted)
    stopped = 0
    if count and (tried is None or tried.left or tried.late or tried.cases != count):
        own = question.in_process or is_own_decoder(question.decoder)
        dtype = "float32" if is_published(question.decoder) else ""
        where = LawsPlace(
            str(models.device), None if own else question.terms.limits, dtype, models.target.config.family
        )
        # the first one holds the start of its process, which is no pace
        with watch("laws", len(LAWS), later=Later(pace=question.law_seconds)) as bar:
            try:
                tried = try_laws_quickly(
                    question.decoder, count, question.settings[0].options, where, lambda law: bar.advance(task=law)
                )
            except LawsInterrupted as stop:
                tried, stopped = stop.tried, stop.status - 128
        _note(file, result, laws=tried.as_dict())
    if tried is not None:
        result.take_laws(tried)
    if stopped:
        raise runs.RunInterrupted(result, stopped)


def _add_quality(
    result: Verification, models: ModelPair, question: Question, conditions: Conditions, watch: Watch
) -> None:
    """Measure the loss of every setting: LOST is a defect of component `quality`, INCONCLUSIVE a reason to be that."""
    if question.loss is None:
        return
    assert isinstance(question.decoder, str), "quality is asked of a decoder with a name"
    means, study = question.loss
    study = replace(study, others=decoder_sources(question.decoder, question.settings))
    with watch("images", study.total(means)) as bar:
        found = run_study(models, means, study, replace(conditions, store=runs.UNKEPT), bar.advance)
    judged = [(row, verdict) for row, verdict in zip(found.rows[1:], found.verdicts, strict=True) if not row.yardstick]
    lost, undecided = (  # a clause a decoder under test that is not KEPT
        tuple(f"{row.name}: {found.why(row)}" for row, verdict in judged if verdict is quality)
        for quality in (Quality.LOST, Quality.INCONCLUSIVE)
    )
    claims = runs.QualityClaims(lost, undecided)
    result.take_quality(claims, found)
    _note(conditions.store.file, result, quality=found.values(), claims=claims.as_dict())
    if found.stopped:
        raise runs.RunInterrupted(result, found.stopped)


def _note(file: Path | None, result: Verification, **values: object) -> None:
    """Keep values in a run's file, if it has one, and is as it was left. Raises `InputError`."""
    if file is None:
        return
    runs.RunFile.check_kept(file, result.sealed)
    with closing(runs.RunFile.go_on(file)) as kept:
        for name, value in values.items():
            kept.note(name, value)
        result.sealed = kept.digest
