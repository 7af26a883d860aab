"""The default verification: few decodes that between them exercise all that a decoder claims.

Promise: a covering design, not a grid. Two drafts (the pair's own, which is mostly wrong, and a close one, which is
mostly right), draft lengths short, long, by schedule and dynamic, with and without a bonus scale; every decoder goes
through all requests, which differ in labels, batch size, guidance, filter and order of noise. What a decoder refuses is
counted; what nothing exercised makes the run INCONCLUSIVE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.decoders.factory import Factory
from harness.decoders.terms import Keeping, Terms
from harness.errors import InputError
from harness.models.pair import CLOSE, ModelPair, close_pair
from harness.protocol.decoder import Settings
from harness.protocol.request import Request
from harness.runs.plan import Plan, Task
from harness.runs.result import Verification
from harness.runs.verification import NOWHERE, RunInterrupted, Step, verify_plan

MOST_REFUSED = 0.5  # of all decodes asked for: a decoder that refuses more has not been tested


@dataclass(frozen=True)
class Block:
    """Settings that meet the same requests on one pair of networks."""

    models: ModelPair
    settings: tuple[Settings, ...]
    requests: tuple[Request, ...]

    @property
    def images(self) -> int:
        """Images asked for, once a setting."""
        return sum(request.B for request in self.requests) * len(self.settings)


def covering(
    models: ModelPair, policy: str = "coupled", noise: float = CLOSE, options: tuple[tuple[str, str], ...] = ()
) -> tuple[Block, ...]:
    """Return the blocks of the default verification.

    Args:
        models: any pair; its own draft is the first block's.
        policy: of every setting.
        noise: of the close draft (`close_pair`).
        options: for the decoder's factory, in every setting.
    """
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
    image alone without guidance, and the filters meet both orders of noise.
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
        Request(labels(2, 6, 4), seed=2**33 + 5, cfg=-0.5),
    )


def verify_blocks(
    blocks: Sequence[Block],
    factory: Factory | str,
    terms: Terms,
    keeping: Keeping = NOWHERE,
    progress: Callable[[Step], None] = lambda step: None,
) -> Verification:
    """Verify a decoder in every block, and say what was covered.

    Args:
        blocks: at least one; all of one target, and every draft but the first block's a close one.
        factory: as of `verify`.
        terms: as of `verify`; what the decoder refuses is counted.
        keeping: as of `verify_plan`.
        progress: as of `verify_plan`.

    Raises:
        InputError: as `verify_plan`, but for refusals of some settings or requests.
        RunInterrupted: as `verify_plan`.
    """
    tried = [list(blocks), _without(blocks, lambda setting: isinstance(setting.draft_len, int))]
    tried.append(_without_bonus(tried[-1]))
    for design in tried:
        asked, left = (sum(len(block.settings) * len(block.requests) for block in of) for of in (blocks, design))
        told = replace(terms, refusals=True, covers=True, unasked=asked - left)
        try:
            made = verify_plan(blocks[0].models, factory, plan_of(design), told, keeping, progress)
        except RunInterrupted as stop:
            say_what_was_covered(stop.result, told)
            raise
        except InputError as error:
            if design is tried[-1] or error.name not in ("draft_len", "bonus", "implementation", "settings"):
                raise
        else:
            say_what_was_covered(made, told)
            return made
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


def _without(blocks: Sequence[Block], keep: Callable[[Settings], bool]) -> list[Block]:
    """Return the blocks with fewer kinds of settings: for a decoder that refuses to be built with the others."""
    return [replace(block, settings=tuple(filter(keep, block.settings))) for block in blocks]


def _without_bonus(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks with every bonus off: a decoder that has none is asked for the same lengths."""
    return [
        replace(block, settings=tuple(dict.fromkeys(replace(setting, bonus=False) for setting in block.settings)))
        for block in blocks
    ]


def say_what_was_covered(result: Verification, terms: Terms) -> None:
    """Name the drafts, count the refusals, and say what was never exercised. Effects: on the result.

    Args:
        result: of a covering design.
        terms: how it was judged.
    """
    for number, setting in enumerate(result.settings):  # none where nothing could be decoded
        setting.draft = "own" if result.plan.draft_of(number) is None else "close"
    result.covers = True
    asked = sum(len(task.settings) for task in result.plan.tasks) + terms.unasked
    result.coverage.refused += terms.unasked
    refused = result.coverage.refused
    if refused > MOST_REFUSED * asked:
        result.reasons.append(f"the decoder refused {refused} of {asked} decodes")
    if not terms.sequential:
        # every design asks for bonus scales: a plan without them is that of a decoder that refuses them
        bonus = any(settings.bonus for settings in result.plan.settings)
        result.reasons += [f"never exercised: {word}" for word in result.coverage.never(bonus)]
