"""Twelve decoders for the doors: right ones, wrong ones, and some that end oddly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from harness import InputError, ModelPair, Request, Round, SeededNoise, Settings, Trace, build_decoder
from harness.mutants._mutant import patched
from harness.protocol.pyramid import ScalePyramid
from harness.speculative._accept import fetch_outcome

Decode = Callable[[ModelPair, Settings, Request, SeededNoise], Any]


class Wrapped:
    """A decoder of one function."""

    def __init__(self, models: ModelPair, settings: Settings, contract: str, decode: Decode) -> None:
        self.models, self.settings, self.contract, self._decode = models, settings, contract, decode

    def decode(self, request: Request, noise: SeededNoise) -> Any:
        return self._decode(self.models, self.settings, request, noise)


def _factory(decode: Decode, contract: str = "token-identical") -> Callable[[ModelPair, Settings], Wrapped]:
    return lambda models, settings: Wrapped(models, settings, contract, decode)


def _own(models: ModelPair, settings: Settings, request: Request, noise: SeededNoise, policy: str = "coupled") -> Trace:
    return build_decoder(models, replace(settings, policy=policy)).decode(request, noise)


def _crash(models: ModelPair, settings: Settings, request: Request, noise: SeededNoise) -> Trace:
    raise LookupError("no such scale")


def _wrong_token(models: ModelPair, settings: Settings, request: Request, noise: SeededNoise) -> Trace:
    trace = _own(models, settings, request, noise)
    tokens_BL = trace.tokens_BL.clone()
    tokens_BL[-1, -1] = (tokens_BL[-1, -1] + 1) % models.target.config.V
    return replace(trace, tokens_BL=tokens_BL)


def _not_finite(models: ModelPair, settings: Settings, request: Request, noise: SeededNoise) -> Trace:
    trace = _own(models, settings, request, noise)
    f_hat_BCPP = trace.f_hat_BCPP.clone()
    f_hat_BCPP[0, 0, 0, 0] = torch.nan
    return replace(trace, f_hat_BCPP=f_hat_BCPP)


def least(verified: Any, window: Any, bonus: bool) -> Any:
    outcome = fetch_outcome(verified, window, bonus)
    end = min(outcome.finished)
    accepted = [min(count, end) for count in outcome.accepted]
    return replace(outcome, accepted=accepted, finished=[end] * len(accepted))


IN_STEP = patched({"harness.speculative._round:fetch_outcome": least})


def _told(turns: list[Round], pyramid: ScalePyramid) -> list[Round]:
    """Count of a round what is final: an image that others hold back corrects nothing."""
    told, ends = [], [*(turn.first for turn in turns[1:]), pyramid.S]
    for turn, end in zip(turns, ends, strict=True):
        tokens = pyramid.end(end - 1) - pyramid.begin(turn.first)
        whole = replace(turn, corrected=False, accepted_tokens=tokens, corrected_tokens=0)
        told.append(whole if turn.accepted == end - turn.first else turn)
    return told


def _lock_step(models: ModelPair, settings: Settings, request: Request, noise: SeededNoise) -> Trace:
    """Let the whole batch advance by the least accepted: right, and images never accept different numbers of scales."""
    if not isinstance(settings.draft_len, int):
        raise InputError("draft_len", settings.draft_len, "must be a number", "pass 5")
    trace = IN_STEP(models, replace(settings, policy="coupled")).decode(request, noise)
    return replace(trace, rounds=[_told(turns, models.pyramid) for turns in trace.rounds])


crash = _factory(_crash)
wrong_token = _factory(_wrong_token)
not_finite = _factory(_not_finite)
lock_step = _factory(_lock_step)
no_trace = _factory(lambda models, settings, request, noise: None)
contract_b = _factory(lambda *words: _own(*words, policy="rejection"), "distribution-identical")
lossy = _factory(lambda *words: _own(*words, policy="match:0.5"), "quality-preserving")

RIGHT = ("harness:build_decoder", "tests.doors:lock_step")
UNPROVEN = ("tests.naive:naive", "tests.doors:contract_b")  # nothing is drafted; nobody tested the law
WITHOUT_TOKENS = ("tests.doors:lossy",)
WRONG = {  # with the component of the first defect
    "harness.mutants.positions:OFFSET": "positions",
    "harness.mutants.state:TWICE": "f_hat",
    "tests.bent:zeroes_codebook": "weights",
    "tests.doors:wrong_token": "draw",
    "tests.doors:not_finite": "f_hat",
    "tests.doors:crash": "crash",
    "tests.doors:no_trace": "trace",
}
EVERY = (*RIGHT, *UNPROVEN, *WITHOUT_TOKENS, *WRONG)
