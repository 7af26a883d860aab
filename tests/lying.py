"""Decoders that say more than they did: factories that `--implementation tests.lying:NAME` names.

Their tokens are right, and nothing else of a right decode is missing: only a judge that looks finds them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from harness import ModelPair, Request, Round, SeededNoise, Settings, Trace, build_decoder
from harness.decoders._factory import Factory
from harness.protocol._decoder import Implementation
from harness.protocol.pyramid import ScalePyramid


@dataclass(frozen=True)
class Lying:
    """A decoder whose trace is changed on the way."""

    inner: Implementation
    change: Callable[[Trace], None]

    @property
    def contract(self) -> str:
        return self.inner.contract

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        trace = self.inner.decode(request, noise)
        self.change(trace)
        return trace


def _lying(change: Callable[[Trace], None]) -> Factory:
    return lambda models, settings: Lying(build_decoder(models, settings), change)


def _nan_kept(trace: Trace) -> None:
    if trace.intermediates is not None:
        kept = trace.intermediates.f_hat_SBCPP.clone()
        kept[-1, -1, 0, 0, 0] = float("nan")
        trace.intermediates = replace(trace.intermediates, f_hat_SBCPP=kept)


def _few_rows(trace: Trace) -> None:
    """Count one row for every round without a draft, and no less in all than all rounds count."""
    trace.rounds = [
        [turn if turn.drafted else replace(turn, target_rows=1) for turn in rounds] for rounds in trace.rounds
    ]
    trace.target_rows = [sum(turn.target_rows for turn in rounds) for rounds in trace.rounds]


def _never_drafts(pyramid: ScalePyramid, trace: Trace) -> None:
    trace.rounds = [
        [
            Round(si, 0, 0, False, True, 0, 0, pyramid.tokens(si), target_rows=999)
            for turn in rounds
            for si in range(turn.first, turn.first + turn.finished)
        ]
        for rounds in trace.rounds
    ]
    trace.target_rows = [sum(turn.target_rows for turn in rounds) for rounds in trace.rounds]
    trace.target_calls = [len(rounds) for rounds in trace.rounds]


def drafts_first(models: ModelPair, settings: Settings) -> Implementation:
    """Draft under a draft length of 1 alone, whatever is asked for."""
    decoder = build_decoder(models, settings)
    return decoder if settings.draft_len == 1 else Lying(decoder, partial(_never_drafts, models.pyramid))


def bonus_ignored(models: ModelPair, settings: Settings) -> Implementation:
    return build_decoder(models, replace(settings, bonus=False))


nan_kept = _lying(_nan_kept)
few_rows = _lying(_few_rows)
