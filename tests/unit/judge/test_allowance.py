"""What rounding may do is that of the request and the scale that are judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.judge._evidence import Evidence
from harness.judge._ties import unusual_ties
from harness.judge._verdict import Divergence
from harness.protocol._request import Request
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import Budget
from tests.helpers import Layout, tiny

FOUR = Layout((1, 2, 3, 4))
REQUEST = Request((0, 1, 2), 0)


def test_a_request_is_judged_by_its_own_guidance_at_the_scale():
    models = tiny(FOUR)
    trace = sample_sequential(models.target, models.vae, REQUEST, models.noise(REQUEST))
    budget = Budget(1.0, 0.5, 0.25, "by hand")
    for cfg, factors in ((0.0, [1, 1, 1, 1]), (1.5, [1, 2, 3, 4]), (-4.5, [1, 4, 7, 10])):
        evidence = Evidence(models, replace(REQUEST, cfg=cfg), trace, trace, budget)
        assert [evidence.allowance(si).logits for si in models.pyramid] == pytest.approx(factors)


def test_many_ties_are_measured_by_the_rounding_of_their_own_scale():
    """Plant: margins of half the last scale's usual ones, all at scale 0, where nothing multiplies rounding."""
    allowed_S = [Budget(1.0, 0.1, 1e-6, "by hand").guided(4.0, ramp) for ramp in (0.0, 0.5, 1.0)]
    early, late = ([Divergence("tie", "", 0, scale=si, margin=0.45) for _ in range(20)] for si in (0, 2))
    assert unusual_ties(early, allowed_S) == early
    assert unusual_ties(late, allowed_S) == []
