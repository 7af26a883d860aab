"""Infinity before the judge: the right decoder, one that rounds elsewhere, and planted bugs, each named by its part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.judge._verdict import Verdict
from harness.models import ModelPair
from harness.models.infinity.transformer import InfinityTransformer
from harness.protocol import Request, Settings
from harness.rounding import quick_budget
from harness.speculative.sampler import SpeculativeDecoder, build_decoder
from tests.helpers import verify_here
from tests.unit.speculative.test_infinity import GUIDANCE, REQUEST, TEXTS, pair

BY_SCALE = ((0, 0.0), (1, 0.0), (0, 0.9), (0, 0.0), (2, 0.6))


def at(*places: int) -> Request:
    return replace(REQUEST, scale_guidance=replace(GUIDANCE, places=places))


REQUESTS = [
    REQUEST,  # w = 1 at one scale, guided at the others
    replace(at(-1), labels=(1,)),
    replace(at(0, -1), labels=(2, 0), seed=9),
    replace(REQUEST, negative_texts=TEXTS[::-1], filters=BY_SCALE),
    replace(REQUEST, order="batch", top_p=0.9),
    replace(REQUEST, scale_guidance=replace(GUIDANCE, weights=(1.0,) * 5)),
]


def single(patch: int = 1, rounds: bool = False) -> ModelPair:
    return pair(patch=patch, dtype=torch.float32, rounds=rounds)


@pytest.mark.parametrize("patch", [1, 2])
def test_the_harness_own_decoder_is_identical(patch: int):
    settings = [Settings(1), Settings(2, bonus=True), Settings(5)]
    result = verify_here(single(patch), build_decoder, settings, REQUESTS)
    assert result.verdict is Verdict.IDENTICAL, result.first_divergence


def moved(models: ModelPair, by: float) -> ModelPair:
    """Return the pair as a machine of another kind has it: every weight of the target another one, by an ulp or so."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: w * (1 + by * torch.randn(w.shape, generator=generator)) for name, w in models.target.weights.items()
    }
    return replace(models, target=InfinityTransformer(models.target.config, weights))


def test_values_at_the_edge_of_a_step_are_forgiven_and_no_more():
    models = single(rounds=True)
    assert models.unrounded().target.config == single().target.config
    request = replace(REQUEST, labels=(0, 1, 2) * 4)

    def verdict(by: float) -> Verdict:
        def elsewhere(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
            return build_decoder(moved(models, by), settings)

        return verify_here(models, elsewhere, [Settings(5)], [request, replace(request, seed=1)]).verdict

    assert verdict(1e-7) in (Verdict.IDENTICAL, Verdict.TIE)
    assert quick_budget(models).rows < 0.01
    assert verdict(1e-2) is Verdict.DEFECT
