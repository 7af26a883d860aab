"""The parts of the speculative side alone: masks, positions, guidance, cache, state; each against plain arithmetic."""

from __future__ import annotations

import pytest
import torch

from harness.errors import InputError
from harness.models.var.quantizer import phi_index
from harness.models.var.sizes import fill_bits, filled_weights, random_weights
from harness.protocol._request import Request
from harness.protocol.pyramid import PATCH_NUMS_256, PATCH_NUMS_512, ScalePyramid
from harness.reference._steps import block_causal
from harness.reference._var import guide as plain_guide
from harness.speculative._state import KVCache
from harness.speculative._steps import attention_mask, split_logits_by_scale
from harness.speculative._var import build_combined_query, guide
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.helpers import LAYOUTS, Layout, tiny

FOUR = ScalePyramid((1, 2, 3, 4))
WINDOWS = [(a, b) for a in range(4) for b in range(a, 4)]


@pytest.mark.parametrize(("sides", "ends"), [
    (PATCH_NUMS_256, [1, 5, 14, 30, 55, 91, 155, 255, 424, 680]),
    (PATCH_NUMS_512, [1, 5, 14, 30, 66, 147, 316, 640, 1216, 2240]),
])  # fmt: skip
def test_spans_partition_the_positions(sides: tuple[int, ...], ends: list[int]):
    pyramid = ScalePyramid(sides)
    assert [pyramid.end(si) for si in pyramid] == ends
    assert [pyramid.begin(si) for si in pyramid] == [0, *ends[:-1]]
    assert pyramid.levels() == [pyramid.level_of(position) for position in range(pyramid.L)]


@pytest.mark.parametrize("sides", [(), (2, 3), (1, 1), (1, 3, 2), (0, 1)])
def test_other_sides_are_refused(sides: tuple[int, ...]):
    with pytest.raises(InputError, match=r"patch_nums=.*must start at 1 and increase strictly; "):
        ScalePyramid(sides)


@pytest.mark.parametrize(("first", "last"), WINDOWS)
def test_the_window_mask_is_a_cut_of_the_plain_one(first: int, last: int):
    begin, end = FOUR.begin(first), FOUR.end(last)
    device = torch.device("cpu")
    plain_11LL = block_causal(FOUR, device, torch.float32)
    window = attention_mask(FOUR, first, last, device, torch.float32)
    assert torch.equal(window, plain_11LL[:, :, begin:end, :end])
    for i, j in ((begin, 0), (end - 1, end - 1), (begin, end - 1)):
        assert (float(plain_11LL[0, 0, i, j]) == 0.0) == (FOUR.level_of(i) >= FOUR.level_of(j))


@pytest.mark.parametrize(("first", "last"), WINDOWS)
def test_the_window_guidance_is_that_of_every_scale(first: int, last: int):
    n = FOUR.end(last) - FOUR.begin(first)
    rows_RnV = torch.randn(6, n, 11, generator=torch.Generator().manual_seed(0))
    parts = split_logits_by_scale(guide(rows_RnV, FOUR, 1.7, first, last), FOUR, first, last)
    rows = split_logits_by_scale(rows_RnV, FOUR, first, last)
    for offset, (actual, rows_RlV) in enumerate(zip(parts, rows, strict=True)):
        assert actual.shape == (3, FOUR.tokens(first + offset), 11)
        assert torch.allclose(actual, plain_guide(rows_RlV, 1.7, first + offset, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("split", [guide, lambda rows, pyramid, cfg, *_: plain_guide(rows, cfg, 0, 4)])
def test_an_odd_number_of_guidance_rows_is_refused(split):
    with pytest.raises(InputError, match="guidance rows=3"):
        split(torch.zeros(3, 1, 11), FOUR, 1.5, 0, 0)


@pytest.mark.parametrize(("first", "last"), WINDOWS)
def test_every_row_of_the_query_sits_at_its_own_position(first: int, last: int):
    network = tiny(Layout((1, 2, 3, 4))).target
    n, begin = FOUR.end(last) - FOUR.begin(first), FOUR.begin(first)
    raw_BnC = torch.randn(1, n, 4, generator=torch.Generator().manual_seed(0))
    condition = network.condition(torch.tensor([1, 3]))
    x_RnD = build_combined_query(network, condition, raw_BnC, first, last)
    for r in range(n):
        if begin + r == 0:
            base_RD = condition.cond_RD + network.weights["pos_start"][0]
        else:
            base_RD = network.embed(raw_BnC)[:, r].expand(2, -1)
        term_D = network.lvl_SD[FOUR.level_of(begin + r)] + network.pos_LD[begin + r]
        assert torch.allclose(x_RnD[:, r], base_RD + term_D, rtol=0, atol=1e-6)


def test_rollback_lowers_one_image_and_never_raises():
    cache = KVCache(tiny().target, 2)
    cache.lengths = [5, 5]
    cache.rollback(0, 1)
    cache.rollback(1, 14)
    assert cache.lengths == [1, 5]


def test_what_was_rolled_back_is_overwritten_and_never_read():
    cache = KVCache(tiny().target, 2)
    ones, twos = torch.ones(4, 2, 5, 8), torch.full((4, 2, 4, 8), 2.0)
    window = cache.window([0, 1])
    window.extend(0, ones, ones)
    window.commit(5)
    cache.rollback(0, 1)
    keys, values = cache.window([0]).extend(0, twos[:2], twos[:2])
    assert keys.shape[2] == values.shape[2] == 5
    assert float(keys[:, :, :1].max()) == 1.0
    assert float(keys[:, :, 1:].min()) == 2.0
    assert torch.equal(cache.kv[0, 0, [1, 3], :, :5], ones[:2])  # the neighbour is untouched


@pytest.mark.parametrize("draft_len", [1, 2, 4])
def test_state_counts_add_up_and_images_do_not_touch_each_other(draft_len: int):
    models = tiny(Layout((1, 2, 3, 4)))
    decoder = SpeculativeDecoder(models, DecoderOptions(draft_len))
    request = Request((0, 1, 2), 4)
    trace = decoder.decode(request, models.noise(request))
    assert bool((trace.scale_writes_BS == 1).all())
    for image, rounds in enumerate(trace.rounds):
        assert sum(turn.finished for turn in rounds) == 4
        assert sum(turn.accepted_tokens + turn.corrected_tokens + turn.bonus_tokens for turn in rounds) == 30
        assert sum(turn.target_rows for turn in rounds) == trace.target_rows[image]
        assert len(rounds) == trace.target_calls[image]
        own = request.only([image])
        alone = decoder.decode(own, models.noise(own))
        assert torch.equal(alone.tokens_BL[0], trace.tokens_BL[image])


@pytest.mark.parametrize(("S", "n", "chosen"), [(10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), (1, 4, [0]), (5, 1, [0] * 5)])
def test_the_choice_of_phi_is_the_normative_list(S: int, n: int, chosen: list[int]):
    assert [phi_index(si, S, n) for si in range(S)] == chosen


def test_weights_are_a_function_of_their_arguments():
    shapes = {"b": (3, 4), "a": (5,)}
    assert all(torch.equal(random_weights(shapes, 1)[name], random_weights(shapes, 1)[name]) for name in shapes)
    assert not torch.equal(random_weights(shapes, 1)["b"], random_weights(shapes, 2)["b"])
    x = 2 + 0x9E3779B9  # element 2 of the second name in order, by hand
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    x ^= x >> 16
    assert int(fill_bits(1, 3)[2]) == x
    assert float(filled_weights(shapes)["b"][0, 2]) == pytest.approx((x / 2**31 - 1) * (3 / 4) ** 0.5, abs=1e-7)


def test_the_layouts_cover_every_branch_of_the_checkpoint():
    assert {layout.phi_layout for layout in LAYOUTS.values()} == {"shared", "one", "per-scale"}
    assert {(layout.shared_adaln, layout.l2_norm) for layout in LAYOUTS.values()} >= {(True, True), (False, False)}
