"""The default verification: few decodes that between them exercise all that a decoder claims.

Promise: a covering design, not a grid. Two drafts (the pair's own, which is mostly wrong, and a close one, which is
mostly right), draft lengths short, long, by schedule and dynamic, with and without a bonus scale; every decoder goes
through all requests, which differ in labels, batch size, guidance, filter and order of noise. What a decoder refuses is
counted; what nothing exercised makes the run INCONCLUSIVE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.errors import InputError
from harness.models.pair import CLOSE, ModelPair, close_pair
from harness.protocol.decoder import Settings
from harness.protocol.request import Request
from harness.runs.factory import Factory
from harness.runs.result import Verification
from harness.runs.verification import Terms, verify

MOST_REFUSED = 0.5  # of all decodes asked for: a decoder that refuses more has not been tested


@dataclass(frozen=True)
class Block:
    """Settings that meet the same requests on one pair of networks."""

    models: ModelPair
    settings: tuple[Settings, ...]
    requests: tuple[Request, ...]
    draft: str  # for tables: "own" or "close"

    @property
    def decodes(self) -> int:
        """Decodes asked for, those of the reference included."""
        return len(self.requests) * (1 + len(self.settings))


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
    return Block(models, own, requests, "own"), Block(close_pair(models, noise), close, requests, "close")


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
    progress: Callable[[], None] = lambda: None,
) -> Verification:
    """Verify a decoder in every block, and say what was covered.

    Args:
        blocks: at least one.
        factory: as of `verify`.
        terms: as of `verify`; what the decoder refuses is counted.
        progress: called after every decode.

    Raises:
        InputError: as `verify`, but for refusals of some settings or requests.
    """
    total: Verification | None = None
    asked = refused = 0
    for block in blocks:
        made, dropped = _verify_block(block, factory, progress, replace(terms, refusals=True))
        asked += len(block.settings) * len(block.requests)
        refused += dropped * len(block.requests) + sum(setting.refused for setting in made.settings)
        for setting in made.settings:
            setting.draft = block.draft
        total = made if total is None else _merged(total, made)
        if terms.first_only and total.first_divergence is not None:
            break
    assert total is not None
    total.covers = True
    total.coverage.refused = refused
    if refused > MOST_REFUSED * asked:
        total.reasons.append(f"the decoder refused {refused} of {asked} decodes")
    if not terms.sequential:
        total.reasons += [f"never exercised: {word}" for word in total.coverage.never()]
    return total


def _verify_block(
    block: Block, factory: Factory | str, progress: Callable[[], None], terms: Terms
) -> tuple[Verification, int]:
    """Verify one block; where the decoder refuses to be built so, with fewer kinds of settings.

    Returns:
        The result, and how many settings were dropped.
    """
    plain = [setting for setting in block.settings if isinstance(setting.draft_len, int)]
    tried = [list(block.settings), plain, [setting for setting in plain if not setting.bonus]]
    for settings in tried:
        try:
            made = verify(block.models, factory, settings, block.requests, progress, terms)
        except InputError as error:
            if settings is tried[-1] or error.name not in ("draft_len", "bonus", "implementation", "settings"):
                raise
        else:
            return made, len(block.settings) - len(settings)
    raise AssertionError("the last try returns or raises")


def _merged(one: Verification, other: Verification) -> Verification:
    """Return both runs as one. The budgets are the same: they are the target's."""
    return replace(
        one,
        settings=one.settings + other.settings,
        early=one.early + other.early,
        decode_seconds=one.decode_seconds + other.decode_seconds,
        seconds=one.seconds + other.seconds,
    )
