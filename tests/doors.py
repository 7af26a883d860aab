"""Twelve decoders for the doors: right ones, wrong ones, and some that end oddly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from harness import ModelPair, Request, Round, SeededNoise, Settings, Trace, build_decoder
from harness.reference.sequential import sample_sequential

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


def _lock_step(models: ModelPair, settings: Settings, request: Request, noise: SeededNoise) -> Trace:
    """Take all images through the same rounds: right, and images never accept different numbers of scales."""
    trace, pyramid = sample_sequential(models.target, models.vae, request, noise), models.pyramid
    rounds = [
        Round(si, 1, 1, False, False, pyramid.tokens(si), 0, 0, pyramid.end(si), draft_rows=pyramid.end(si))
        for si in pyramid
    ]
    rows = [sum(turn.target_rows for turn in rounds)] * request.B
    return replace(trace, rounds=[rounds] * request.B, target_calls=[pyramid.S] * request.B, target_rows=rows)


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
    "tests.doors:wrong_token": "f_hat",
    "tests.doors:not_finite": "f_hat",
    "tests.doors:crash": "crash",
    "tests.doors:no_trace": "trace",
}
EVERY = (*RIGHT, *UNPROVEN, *WITHOUT_TOKENS, *WRONG)
