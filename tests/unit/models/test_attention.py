"""Attention in blocks of queries: as a whole where queries and keys are few, the same within rounding where not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models import ModelPair
from harness.models.infinity.checkpoint import load_digits_bits
from harness.models.var import transformer as module
from harness.models.var.transformer import MOST_SCORES, SCORES_AT_ONCE, attend, queries_at_once
from harness.protocol.pyramid import KNOWN_PYRAMIDS, PATCH_NUMS_512
from harness.reference import family_of, teacher_forced
from harness.reference.sequential import GrowingCache
from tests.helpers import digits

AT_1M = 10521  # positions of the published schedule of 1M
PLAIN = F.scaled_dot_product_attention


def drawn(n: int, K: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return queries, keys and values of four heads, and a mask that hides a third of the keys."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, length, 8, generator=generator, dtype=dtype) for length in (n, K, K))
    mask_nK = torch.zeros(n, K, dtype=dtype).masked_fill(torch.rand(n, K, generator=generator) < 1 / 3, -torch.inf)
    return q, k, v, mask_nK[None, None]


def test_no_pass_of_var_is_taken_in_blocks_and_every_one_is_bounded():
    for pyramid in KNOWN_PYRAMIDS:
        assert queries_at_once(512 * 30, pyramid.L, pyramid.L) == pyramid.L
    assert PATCH_NUMS_512 in [pyramid.patch_nums for pyramid in KNOWN_PYRAMIDS]
    assert AT_1M * AT_1M > MOST_SCORES
    for heads in (1, 32, 10**9):
        step = queries_at_once(heads, AT_1M, AT_1M)
        assert step == 1 or heads * step * AT_1M <= SCORES_AT_ONCE


@pytest.mark.parametrize("masked", [False, True])
def test_few_queries_are_attended_as_a_whole_to_the_last_bit(masked: bool):
    q, k, v, mask = drawn(680, 680, torch.float32)
    given = mask if masked else None
    assert torch.equal(attend(q, k, v, given, 0.3), PLAIN(q, k, v, given, scale=0.3))


@pytest.mark.parametrize("masked", [False, True])
def test_many_queries_are_attended_in_blocks_within_rounding(monkeypatch: pytest.MonkeyPatch, masked: bool):
    q, k, v, mask = drawn(50, 70, torch.float64)
    given, seen = mask if masked else None, list[int]()
    whole = PLAIN(q, k, v, given, scale=0.3)

    def counted(q: Tensor, k: Tensor, *others: Any, **named: Any) -> Tensor:
        seen.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return PLAIN(q, k, *others, **named)

    monkeypatch.setattr(module, "MOST_SCORES", 50 * 70 - 1)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 4 * 70 * 12)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    torch.testing.assert_close(attend(q, k, v, given, 0.3), whole, rtol=0, atol=1e-12)
    assert seen == [4 * 70 * 12] * 4 + [4 * 70 * 2]


@pytest.mark.parametrize("pair", [digits, load_digits_bits])
def test_passes_of_both_families_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch, pair: Any):
    models: ModelPair = pair().wide()
    pyramid, family = models.pyramid, family_of(models.target)
    request = family.example(models, 2, 0)
    labels_B = models.noise(request).labels(models.target.config.classes)
    tokens_BL = torch.randint(2, (2, pyramid.draws.L), generator=torch.Generator().manual_seed(1))

    def rows() -> Tensor:
        return teacher_forced(models.target, models.vae, request, labels_B, tokens_BL, pyramid.S)[0]

    whole, limit = rows(), module.MOST_SCORES
    monkeypatch.setattr(module, "MOST_SCORES", pyramid.L**2 - 1)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 1000 * pyramid.L)
    blocks = rows()
    torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-12 * float(whole.abs().max()))
    monkeypatch.setattr(module, "MOST_SCORES", limit)
    assert torch.equal(rows(), whole)


def test_a_cache_that_does_not_grow_shows_all_and_keeps_nothing_new():
    _, k, v, _ = drawn(5, 7, torch.float32)
    cache = GrowingCache(grows=False)
    cache.layers[0] = k, v
    seen = [cache.extend(layer, 2 * k, 2 * v) for layer in (0, 1)]
    assert torch.equal(seen[0][0], torch.cat((k, 2 * k), 2))
    assert torch.equal(seen[1][1], 2 * v)
    assert list(cache.layers) == [0]
    assert cache.layers[0] == (k, v)
