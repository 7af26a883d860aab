"""The law of a bench's coin: `imposed:RATE`, which `bench` alone may ask for, so that no other law meets it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from harness.laws.case import Case
from harness.laws.law import NotOffered, Subject, require, require_tokens
from harness.laws.turns import require_rounds
from harness.protocol.noise import TOKEN, SeededNoise
from harness.protocol.pyramid import PATCH_NUMS_256, ScalePyramid
from harness.protocol.request import Request
from harness.reference import policies
from harness.speculative.accept import Policy, Proposal, Window
from harness.speculative.parts import PARTS
from harness.speculative.policies import parse
from harness.speculative.sampler import SpeculativeDecoder

# Images whose coins are counted; a share is off by more than six standard deviations with a chance below 1e-7.
TOSSES, SIGMAS = 200, 6.0


def coin(subject: Subject, case: Case) -> bool:
    """Under a bench's `imposed:RATE` a scale stands by the first number of its stream, with chance RATE at any size."""
    decoder: Any = subject.decoder(case)
    if not isinstance(decoder, SpeculativeDecoder):
        raise NotOffered("not composed of the harness's parts")
    fell, stood, many = False, False, _coins(case)
    for rate in (0.3, 0.7):
        policy = parse(f"imposed:{rate}", bench=True)
        tossing = copy.copy(decoder)
        tossing.options = replace(decoder.options, policy=policy)
        got = tossing.decode(case.request, case.noise())
        draft_len = str(case.length)
        due_BL, due = policies.decode(case.models, case.request, case.noise(), policy.name, draft_len, case.bonus)
        require_tokens(got.tokens_BL, due_BL, f"policy {policy.name}")
        require_rounds(got.rounds, due, f"policy {policy.name}")
        fell = fell or any(turn.corrected for rounds in due for turn in rounds)
        stood = stood or any(turn.accepted for rounds in due for turn in rounds)
        _tossed(policy, rate, many)
    return fell and stood


def _coins(case: Case) -> Window:
    """Return the real pyramid's scales, for many images."""
    pyramid = ScalePyramid(PATCH_NUMS_256)
    noise = SeededNoise(Request((0,) * TOSSES, case.seed, order="batch"), pyramid, 2, case.at)
    return Window(noise, pyramid, list(range(TOSSES)), 0, pyramid.S - 1, "law")


def _tossed(policy: Policy, rate: float, window: Window) -> None:
    """Require that at every scale the share of images whose scale stands is RATE, whatever its size."""
    pyramid, device = window.pyramid, window.exponential(TOKEN).device
    tokens_bn = torch.zeros(TOSSES, pyramid.L, dtype=torch.int64, device=device)
    probs_bnV = torch.full((TOSSES, pyramid.L, 2), 0.5, device=device)
    whole_bs = policy.accept(PARTS, Proposal(tokens_bn, probs_bnV), probs_bnV, window).whole_bs
    far = SIGMAS * (rate * (1 - rate) / TOSSES) ** 0.5
    for si, share in enumerate(whole_bs.double().mean(0).tolist()):
        said = f"policy {policy.name}: {share:.3f} of {TOSSES} images keep scale {si} ({pyramid.tokens(si)} tokens)"
        require(abs(share - rate) < far, said)
