"""A policy that keeps drafted scales at a stated rate, whatever their tokens: for measuring speed, and nothing else.

The published sizes have random weights here, and a random draft is never right by itself.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from harness.errors import InputError
from harness.protocol.contract import Contract
from harness.protocol.noise import ACCEPT
from harness.speculative.accept import Acceptance, Policy, Proposal, Window
from harness.speculative.parts import Parts
from harness.speculative.policies import parse
from harness.speculative.rules import race

NAME = "imposed"


def parse_policy(text: str) -> Policy:
    """Return the policy of a text: ``imposed:RATE``, or one of `policies.parse`.

    Raises:
        InputError: RATE is no number in [0, 1], or the policy is unknown.
    """
    name, _, value = text.partition(":")
    if name != NAME:
        return parse(text)
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise InputError("policy", text, "RATE must be a number in [0, 1]", "pass --policies imposed:0.5")
    return imposed(rate)


def imposed(rate: float) -> Policy:
    """Return the policy that keeps a drafted scale with probability `rate`, whatever its tokens."""
    reason = "it keeps drafted scales by a coin"
    return Policy(f"{NAME}:{rate:g}", Contract.QUALITY, race, partial(_accept, rate=rate), race, reason=reason)


def _accept(parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rate: float) -> Acceptance:
    """A scale's coin is the first number of its stream ACCEPT, so it depends on (seed, image, scale) alone."""
    tokens_bn = race(parts, target_probs_bnV, window)
    u_bn = window.read_as("accept").uniform(ACCEPT)
    whole_bs = torch.stack([u_bl[:, 0] < rate for u_bl in window.split(u_bn)], 1)
    return Acceptance(tokens_bn, tokens_bn == proposal.tokens_bn, whole_bs)
