"""The default verification: few decodes that between them exercise all that a decoder claims.

Promise: a covering design, not a grid. Two drafts (the pair's own, which is mostly wrong, and a close one, which is
mostly right), draft lengths short, long, by schedule and dynamic, with and without a bonus scale; every decoder goes
through all requests, which differ in labels, batch size, guidance, filter and order of noise. Published code has
settings of its own, and meets the same drafts and requests. What a decoder refuses, or declares not to do, is counted
and said; a claim that nothing exercised makes the run INCONCLUSIVE.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from harness.errors import InputError
from harness.models import CLOSE_NOISE, ModelPair, close_pair
from harness.pool import ALONE, Parallelism
from harness.protocol import Request, Settings
from harness.reference import family_of
from harness.runs._decodes import Decodes, RunInterrupted, Step, verify_decodes
from harness.runs._plan import Plan, Task
from harness.runs._result import Verification
from harness.runs._runfile import UNKEPT, RunFileOptions

READ = "more_smooth"  # by families with soft codes


@dataclass(frozen=True)
class Block:
    """Settings that meet the same requests on one pair of networks."""

    models: ModelPair
    settings: tuple[Settings, ...]
    requests: tuple[Request, ...]


def covering(
    models: ModelPair, policy: str = "coupled", noise: float = CLOSE_NOISE,
    options: tuple[tuple[str, str], ...] = (), whole: bool = True,
) -> tuple[Block, ...]:  # fmt: skip
    """Return the blocks of the default verification: its own draft, and a close one.

    `whole`: filters by scale and soft codes, too; many a right decoder of somebody's does not read these.
    """
    S, requests = models.pyramid.S, (*requests_for(models), *([filtered_by_scale(models)] if whole else []))

    def settings(*choices: tuple[int | str, bool]) -> tuple[Settings, ...]:
        cut = [(min(length, S) if isinstance(length, int) else length, bonus) for length, bonus in choices]
        return tuple(dict.fromkeys(Settings(length, bonus, policy, options) for length, bonus in cut))

    schedule = "/".join(str(min(1 + (2 * si + 1) % 4, S - si)) for si in range(S))
    own = settings((1, False), (4, True), (f"dynamic:1:{min(3, S)}", False))
    close = settings((1, True), (2, False), (3, True), (5, False), (S, True), (schedule, False),
                     (f"dynamic:1:{S}", True))  # fmt: skip
    soft = (soft_codes(models),) if whole and READ in models.target.config.reads else ()
    return Block(models, own, (*requests, *soft)), Block(close_pair(models, noise), close, requests)


def covering_with(
    models: ModelPair, settings: Sequence[Settings], drafts: bool = True, smooth: bool = True
) -> tuple[Block, ...]:
    """Return the blocks for a decoder with settings of its own: with a close draft if it `drafts`, and soft codes."""
    smooth = smooth and READ in models.target.config.reads
    every, requests = tuple(settings), (*requests_for(models), *([soft_codes(models)] if smooth else []))
    own = Block(models, every, requests)
    return (own, Block(close_pair(models, CLOSE_NOISE), every, requests)) if drafts else (own,)


def soft_codes(models: ModelPair) -> Request:
    """Return a request for soft codes: without top-p, at whose edge rounding would decide one."""
    classes, V = models.target.config.classes, models.target.config.V
    return Request((1 % classes, 4 % classes), seed=5, top_k=max(2, V // 4), more_smooth=True)


def filtered_by_scale(models: ModelPair) -> Request:
    """Return a request whose filter changes with every scale: a neighbour has another top-p, another top-k, or both."""
    V, S = models.target.config.V, models.pyramid.S
    if not models.target.config.classes:
        turns = ((1, 0.0), (0, 0.8), (0, 0.0), (2, 0.6))
        return replace(_of_texts(models)[0], seed=6, filters=tuple(turns[si % 4] for si in range(S)))
    turns = ((max(2, V // 8), 0.9), (max(2, V // 8), 0.6), (0, 0.8), (max(1, V // 16), 0.0))
    return Request((6 % models.target.config.classes,), seed=6, filters=tuple(turns[si % 4] for si in range(S)))


def requests_for(models: ModelPair) -> tuple[Request, ...]:
    """Return requests that differ in all that a decoder could keep from one to the next.

    Neighbours have another batch size, or the same one and other labels; one holds the unconditional label, one an
    image alone without guidance, one a guidance value that is no short decimal. The filters meet both orders of noise,
    each alone, and together so that their order decides: of V/16 tokens nine tenths are other ones than of all.
    """
    classes, V = models.target.config.classes, models.target.config.V
    if not classes:
        return _of_texts(models)

    def labels(*wanted: int) -> tuple[int, ...]:
        return tuple(label % classes if label >= 0 else classes for label in wanted)

    return (
        Request(labels(0, 1, 2, 3), seed=0),
        Request(labels(5, -1), seed=1, cfg=4.0, order="batch"),
        Request(labels(7, 8, 9), seed=2, top_k=max(2, V // 16), top_p=0.9, images=(9, 2, 5)),
        Request(labels(3), seed=3, cfg=0.0),
        Request(labels(-1), seed=4, cfg=1.0, top_p=0.97, order="batch"),
        Request(labels(2, 6, 4), seed=2**33 + 5, cfg=-0.5772156649015329, top_k=max(1, V // 4)),
    )


def _of_texts(models: ModelPair) -> tuple[Request, ...]:
    """Return the like for texts that ship, or are made up, of several lengths: guidance at several places, too."""
    whole, S = family_of(models.target).example(models, 4, 0), models.pyramid.S
    guidance, config = whole.scale_guidance, models.target.config
    assert guidance is not None
    deep = min(models.draft.config.depth, config.depth) > 1 and "places" in config.reads
    mixed = tuple((1.0, 2.0, 0.5)[si % 3] for si in range(S))  # some scales are not guided, some towards no text
    negative = whole.texts[::-1] if "negative_texts" in config.reads else ()
    return (
        whole,
        replace(whole, labels=(3, 0), seed=1, order="batch", scale_guidance=replace(guidance, weights=mixed)),
        replace(whole, labels=(2, 1), seed=2, top_k=1, top_p=0.9, negative_texts=negative),
        replace(whole, labels=(1,), seed=3, scale_guidance=replace(guidance, weights=(1.0,) * S)),
        replace(whole, labels=(0, 2, 3), seed=4, top_p=0.97, order="batch",
                scale_guidance=replace(guidance, places=(-1, 0) if deep else (0,))),
        replace(whole, labels=(3, 1), seed=2**33 + 5, top_k=1,
                scale_guidance=replace(guidance, weights=mixed[::-1], temperatures=mixed,
                                       places=(-1,) if deep else (0,))),
    )  # fmt: skip


def verify_coverage_plan(
    models: ModelPair, decodes: Decodes, parallelism: Parallelism = ALONE, store: RunFileOptions = UNKEPT,
    progress: Callable[[Step], None] = lambda step: None,
) -> Verification:  # fmt: skip
    """Verify a decoder over a covering design, and say what was covered.

    A decoder that refuses to be built for every setting, or declares so, is asked for those with fixed draft lengths or
    without bonus scales, or both; what it refuses is counted. The plan is that of `plan_of`; a decoder that is judged
    against meets the same settings. Raises as `verify_decodes`, but for refusals of some settings or requests.
    """
    plan, is_fixed, without = decodes.plan, False, False
    while True:
        against, unasked = decodes.terms.against, decodes.plan.decodes - plan.decodes
        if against is not None:  # it meets the settings of the plan with its own policy and options
            met = [replace(against.settings[0], draft_len=each.draft_len, bonus=each.bonus) for each in plan.settings]
            against = replace(against, settings=tuple(met))
        terms = replace(decodes.terms, refusals=True, covers=True, unasked=unasked, against=against)
        try:
            result = verify_decodes(models, replace(decodes, plan=plan, terms=terms), parallelism, store, progress)
        except RunInterrupted as stop:
            stop.result.take_design(unasked)
            raise
        except InputError as error:
            if error.name not in ("draft_len", "bonus", "implementation", "settings") or (is_fixed and without):
                raise
            without |= error.name == "bonus" or is_fixed
            is_fixed |= error.name != "bonus"
            asked, plan = plan.images, decodes.plan.narrowed(partial(_fitting, is_fixed, without))
            if not plan.tasks:
                raise
            progress(Step(0, off=asked - plan.images))
        else:
            result.take_design(unasked)
            return result


def _fitting(is_fixed: bool, without: bool, setting: Settings) -> Settings | None:
    """Return a setting for a decoder that takes fixed draft lengths alone, or that is `without` bonus scales."""
    has_rule = isinstance(setting.draft_len, str) and setting.draft_len != ""  # empty: the decoder's own
    if is_fixed and has_rule:
        return None
    return replace(setting, bonus=False) if without else setting


def plan_of(blocks: Sequence[Block]) -> Plan:
    """Return one plan for all blocks: a task a request, under the settings of every block that holds it."""
    drafts = tuple(None if block is blocks[0] else block.models.draft_noise for block in blocks for _ in block.settings)
    meets: dict[Request, list[int]] = {}
    number = 0
    for block in blocks:
        for request in block.requests:
            meets.setdefault(request, []).extend(range(number, number + len(block.settings)))
        number += len(block.settings)
    tasks = tuple(Task(k, request, tuple(numbers)) for k, (request, numbers) in enumerate(meets.items()))
    return Plan(tuple(setting for block in blocks for setting in block.settings), tasks, drafts)
