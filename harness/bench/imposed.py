"""A policy that keeps drafted scales at a stated rate, whatever their tokens: for measuring speed, and nothing else.

The published sizes have random weights here, and a random draft is never right by itself.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache, partial

import torch
from torch import Tensor

from harness.errors import InputError
from harness.speculative.accept import Acceptance, Policy, Proposal, Window
from harness.speculative.parts import Parts
from harness.speculative.policies import QUALITY, parse
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
    """Return the policy that keeps a drafted scale with probability `rate`, by a coin of (image, scale) alone."""
    reason = "it keeps drafted scales by a coin"
    return Policy(f"{NAME}:{rate:g}", QUALITY, race, partial(_accept, rate=rate), race, reason=reason)


def _accept(parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rate: float) -> Acceptance:
    tokens_bn = race(parts, target_probs_bnV, window)
    whole_bs = _coins(tuple(window.images), window.first, window.last, rate, tokens_bn.device)
    return Acceptance(tokens_bn, tokens_bn == proposal.tokens_bn, whole_bs)


@cache  # never emptied, since a recorded pass keeps the address
def _coins(images: tuple[int, ...], first: int, last: int, rate: float, device: torch.device) -> Tensor:
    """Return whole_bs."""
    coins = [[_coin(image, si) < rate for si in range(first, last + 1)] for image in images]
    return torch.tensor(coins, device=device)


def _coin(image: int, si: int) -> float:
    """Return a number in [0, 1) that depends on (image, scale) alone."""
    return int.from_bytes(hashlib.blake2b(f"{image}/{si}".encode(), digest_size=4).digest(), "big") / 2**32
