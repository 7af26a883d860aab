"""A token at a top-p threshold takes part or not by rounding: whoever draws the next one then has made no mistake."""

from __future__ import annotations

import math

import pytest
import torch

from harness.judge.ties import margin_bound, race_margin
from harness.protocol.request import Request
from harness.rounding.budget import Allowance

REQUEST = Request((0,), top_p=0.8)
# ascending shares 0.05, 0.15, 0.3, 0.5: with token 1 the sum is 0.2 = 1 - p, where it is dropped
SHARES = (0.05, 0.15, 0.3, 0.5)
E_V = torch.tensor([9.0, 1e-3, 9.0, 1.0])  # token 1 wins where it takes part, else token 3


@pytest.mark.parametrize("above", [-1e-5, 0.0, 1e-5])
def test_a_token_whose_share_sits_at_the_threshold_is_no_certain_rival(above: float):
    logits_V = torch.tensor([math.log(share) for share in SHARES], dtype=torch.float64)
    logits_V[1] += above
    allowed = Allowance(1e-3, 1e-3, 0.0, "by hand")
    for token in (1, 3):
        assert race_margin(logits_V, E_V, token, REQUEST, allowed) <= margin_bound(allowed)
    assert race_margin(logits_V, E_V, 2, REQUEST, allowed) > margin_bound(allowed)
    assert race_margin(logits_V, E_V, 0, REQUEST, allowed) == float("inf")


def test_a_token_well_above_the_threshold_is_a_certain_rival():
    logits_V = torch.tensor([math.log(share) for share in (0.05, 0.17, 0.3, 0.48)], dtype=torch.float64)
    allowed = Allowance(1e-3, 1e-3, 0.0, "by hand")
    assert race_margin(logits_V, E_V, 3, REQUEST, allowed) > margin_bound(allowed)
    assert race_margin(logits_V, E_V, 1, REQUEST, allowed) <= margin_bound(allowed)
