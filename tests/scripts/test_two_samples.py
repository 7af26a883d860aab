"""The two-sample test of tokens: false alarms, power, one sample with itself, tokens that hang together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.protocol.pyramid import ScalePyramid
from scripts.two_samples import SMALL, compare_samples

PYRAMID, V = ScalePyramid((1, 2)), 12


def drawn(n: int, generator: torch.Generator, bias: float = 0.0, scale: int = 1) -> Tensor:
    """Tokens of images that each like one token; a share `bias` of one scale's tokens is token 0 instead."""
    liked = torch.randint(0, V, (n, 1), generator=generator)
    free = torch.randint(0, V, (n, PYRAMID.L), generator=generator)
    tokens = torch.where(torch.rand(n, PYRAMID.L, generator=generator) < 0.6, liked, free)
    span = PYRAMID.span(scale)
    moved = torch.rand(n, PYRAMID.L, generator=generator) < bias
    tokens[:, span] = torch.where(moved[:, span], 0, tokens[:, span])
    return tokens


def ps(runs: int, n: int, bias: float, seed: int = 0, scale: int = 1) -> list[tuple[float, int]]:
    found = []
    for k in range(runs):
        generator = torch.Generator().manual_seed(1000 * seed + k)
        made = compare_samples(drawn(n, generator, bias, scale), drawn(n, generator), PYRAMID, V, generator)
        found.append((made.p, made.scale))
    return found


def test_one_law_is_no_alarm_and_a_bias_is_found_at_its_scale():
    assert all(p >= SMALL for p, _ in ps(20, 200, 0.0))
    found = ps(5, 1500, 0.1)
    assert all(p < SMALL for p, _ in found)
    assert [scale for _, scale in found] == [1] * 5
    assert [scale for _, scale in ps(3, 1500, 0.15, scale=0)] == [0] * 3


def test_a_sample_is_like_itself():
    tokens = drawn(50, torch.Generator().manual_seed(0))
    made = compare_samples(tokens, tokens, PYRAMID, V, torch.Generator().manual_seed(0))
    assert made.p == 1.0
    assert made.tests == 3
    assert "smallest of 3 tests, times 3" in str(made)


def test_the_narrow_type_of_a_run_file_gives_the_same():
    generator = torch.Generator().manual_seed(5)
    a, b = drawn(60, generator), drawn(60, generator)
    wide, narrow = (
        compare_samples(x(a), x(b), PYRAMID, V, torch.Generator().manual_seed(0)) for x in (Tensor.long, Tensor.short)
    )
    assert wide == narrow


@pytest.mark.slow
def test_false_alarms_and_power():
    """Measured: 400 pairs of one law, 50 of each bias of one scale at N = 4,000 (docs/evidence.md)."""
    alarms = torch.tensor([p for p, _ in ps(400, 300, 0.0, seed=1)])
    assert float((alarms < 0.05).double().mean()) <= 0.05 + 0.033  # three standard errors
    assert int((alarms < SMALL).sum()) == 0
    assert float((alarms < 0.001).double().mean()) <= 0.0075
    power = {bias: sum(p < SMALL for p, _ in ps(50, 4000, bias, seed=2)) / 50 for bias in (0.02, 0.04, 0.06)}
    print(power, float((alarms < 0.05).double().mean()), float(alarms.min()))
    assert power[0.06] >= 0.95
    assert power[0.02] <= power[0.04] <= power[0.06]
