"""The default verification: few decodes that between them exercise all that a decoder claims.

Promise: a covering design, not a grid. Two drafts (the pair's own, which is mostly wrong, and a close one, which is
mostly right), draft lengths short, long, by schedule and dynamic, with and without a bonus scale; every decoder goes
through all requests, which differ in labels, batch size, guidance, filter and order of noise. What a decoder refuses is
counted; what nothing exercised makes the run INCONCLUSIVE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.decoders import Terms
from harness.errors import InputError
from harness.models import CLOSE_NOISE, ModelPair, close_pair
from harness.pool import ALONE, Parallelism
from harness.protocol import Request, Settings
from harness.runs._decodes import Decodes, RunInterrupted, Step, verify_decodes
from harness.runs._plan import Plan, Task
from harness.runs._result import Verification
from harness.runs._runfile import UNKEPT, RunFileOptions

MOST_REFUSED = 0.5  # of all decodes asked for: a decoder that refuses more has not been tested


@dataclass(frozen=True)
class Block:
    """Settings that meet the same requests on one pair of networks."""

    models: ModelPair
    settings: tuple[Settings, ...]
    requests: tuple[Request, ...]


def covering(
    models: ModelPair, policy: str = "coupled", noise: float = CLOSE_NOISE, options: tuple[tuple[str, str], ...] = ()
) -> tuple[Block, ...]:
    """Return the blocks of the default verification: the pair's own draft, and a close one (`noise`: `close_pair`)."""
    S, requests = models.pyramid.S, requests_for(models)

    def settings(*choices: tuple[int | str, bool]) -> tuple[Settings, ...]:
        cut = [(min(length, S) if isinstance(length, int) else length, bonus) for length, bonus in choices]
        return tuple(dict.fromkeys(Settings(length, bonus, policy, options) for length, bonus in cut))

    schedule = "/".join(str(min(1 + (2 * si + 1) % 4, S - si)) for si in range(S))
    own = settings((1, False), (4, True), (f"dynamic:1:{min(3, S)}", False))
    close = settings((1, True), (2, False), (3, True), (5, False), (S, True), (schedule, False),
                     (f"dynamic:1:{S}", True))  # fmt: skip
    return Block(models, own, requests), Block(close_pair(models, noise), close, requests)


def requests_for(models: ModelPair) -> tuple[Request, ...]:
    """Return requests that differ in all that a decoder could keep from one to the next.

    Neighbours have another batch size, or the same one and other labels; one holds the unconditional label, one an
    image alone without guidance, one a guidance value that is no short decimal; filters meet both orders of noise.
    """
    classes, V = models.target.config.classes, models.target.config.V

    def labels(*wanted: int) -> tuple[int, ...]:
        return tuple(label % classes if label >= 0 else classes for label in wanted)

    return (
        Request(labels(0, 1, 2, 3), seed=0),
        Request(labels(5, -1), seed=1, cfg=4.0, order="batch"),
        Request(labels(7, 8, 9), seed=2, top_k=max(1, V // 4), top_p=0.9, images=(9, 2, 5)),
        Request(labels(3), seed=3, cfg=0.0),
        Request(labels(-1), seed=4, cfg=1.0, top_p=0.97, order="batch"),
        Request(labels(2, 6, 4), seed=2**33 + 5, cfg=-0.5772156649015329),
    )


def verify_coverage_plan(
    models: ModelPair,
    decodes: Decodes,
    parallelism: Parallelism = ALONE,
    store: RunFileOptions = UNKEPT,
    progress: Callable[[Step], None] = lambda step: None,
) -> Verification:
    """Verify a decoder over a covering design, and say what was covered.

    A decoder that refuses to be built for every setting is asked for those with a fixed draft length, then for these
    without bonus scales; what it refuses is counted. The plan is that of `plan_of`. Raises as `verify_decodes`, but
    for refusals of some settings or requests.
    """
    fixed = decodes.plan.narrowed(lambda setting: setting if isinstance(setting.draft_len, int) else None)
    plans = [decodes.plan, fixed, fixed.narrowed(lambda setting: replace(setting, bonus=False))]
    for plan in plans:
        terms = replace(decodes.terms, refusals=True, covers=True, unasked=decodes.plan.decodes - plan.decodes)
        try:
            result = verify_decodes(models, replace(decodes, plan=plan, terms=terms), parallelism, store, progress)
        except RunInterrupted as stop:
            say_what_was_covered(stop.result, terms)
            raise
        except InputError as error:
            if plan is plans[-1] or error.name not in ("draft_len", "bonus", "implementation", "settings"):
                raise
        else:
            say_what_was_covered(result, terms)
            return result
    raise AssertionError("the last try returns or raises")


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


def say_what_was_covered(result: Verification, terms: Terms) -> None:
    """Name the drafts, count the refusals, and say what was never exercised. Effects: on the result."""
    for number, setting in enumerate(result.settings):  # none where nothing could be decoded
        setting.draft = "own" if result.plan.drafts[number] is None else "close"
    result.covers = True
    asked = result.plan.decodes + terms.unasked
    result.coverage.refused += terms.unasked
    refused = result.coverage.refused
    if refused > MOST_REFUSED * asked:
        result.reasons.append(f"the decoder refused {refused} of {asked} decodes")
    if not terms.sequential:
        # every design asks for bonus scales: a plan without them is that of a decoder that refuses them
        bonus = any(settings.bonus for settings in result.plan.settings)
        result.reasons += [f"never exercised: {word}" for word in result.coverage.never(bonus)]
