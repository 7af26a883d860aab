"""The Infinity network alone: parameter counts, rotation, guidance between blocks, rounding, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from harness.errors import InputError
from harness.models.infinity.autoencoder import BinaryQuantizer, from_map, to_map
from harness.models.infinity.transformer import (
    InfinityConfig,
    InfinityTransformer,
    guided_between,
    infinity_shapes,
    rotated,
    rotation,
)
from harness.models.var.sizes import count_scalars, filled_weights
from harness.protocol import Request, Rows, ScaleGuidance
from harness.protocol.pyramid import ScalePyramid
from harness.reference.sequential import GrowingCache

SQUARE = ScalePyramid(sides=((1, 1), (64, 64)), channels=32)
SMALL = InfinityConfig(ScalePyramid(sides=((1, 1), (2, 3)), channels=4), 3, 32, 2, 4, 128, 6, 256, 1)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (InfinityConfig(SQUARE, 32, 2048, 16, 32, 2048, 512, 8192, 16, chunks=8), 2_204_564_032),
        (
            InfinityConfig(replace(SQUARE, channels=56), 40, 3584, 28, 14, 2048, 512, 14336, 16, chunks=8),
            8_375_791_824,
        ),
    ],
)
def test_published_sizes_have_their_exact_parameter_counts(config: InfinityConfig, parameters: int):
    assert count_scalars(infinity_shapes(config)) == parameters


def test_neighbouring_channels_are_turned_by_row_then_by_column():
    where = torch.tensor([[0.0, 0.0], [3.0, 5.0]])
    cos, sin = rotation(where, 8, torch.float64)
    angles = torch.tensor([3.0, 3.0 * 10000 ** (-1 / 2), 5.0, 5.0 * 10000 ** (-1 / 2)], dtype=torch.float64)
    assert torch.equal(cos[0], torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(cos[1], angles.cos())
    torch.testing.assert_close(sin[1], angles.sin())
    x = torch.randn(1, 1, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned, at = rotated(x, (cos, sin)), x[0, 0, 1, 2:4]
    turn = torch.stack((torch.stack((cos[1, 1], -sin[1, 1])), torch.stack((sin[1, 1], cos[1, 1]))))
    torch.testing.assert_close(turned[0, 0, 1, 2:4], turn @ at)


def test_between_two_points_of_the_grid_tables_are_mixed():
    cos, sin = rotation(torch.tensor([[1.25, 2.0]]), 4, torch.float64)
    mixed = 0.75 * torch.tensor(1.0, dtype=torch.float64).cos() + 0.25 * torch.tensor(2.0, dtype=torch.float64).cos()
    torch.testing.assert_close(cos[0, 0], mixed)
    assert float(cos[0, 0] ** 2 + sin[0, 0] ** 2) < 0.99


def test_angles_and_guidance_weights_keep_their_bits_in_narrow_networks():
    """In bfloat16 the angle 111 would be off by a quarter, and a weight of 1.001 would be none."""
    network = InfinityTransformer(SMALL, filled_weights(infinity_shapes(SMALL)))
    x_11D, where = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(2)), torch.tensor([[0.0, 111.0, 37.0]])
    turns = {}
    for dtype in (torch.float32, torch.bfloat16):
        narrow = network.to("cpu", dtype)
        turn = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("harness.models.infinity.transformer.rotated", lambda x, t, of=turn: (of.append(t), x)[1])
            narrow.hidden(x_11D.to(dtype), narrow.condition([torch.ones(2, 128)]), GrowingCache(), None, where)
        turns[dtype] = turn[0]
    assert all(map(torch.equal, *turns.values()))
    q = torch.randn(1, 1, 1, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert torch.equal(rotated(q, turns[torch.float32]), rotated(q.float(), turns[torch.float32]).bfloat16())
    x = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(4)).bfloat16() * 1000
    mixed, level_n = guided_between(x, ScaleGuidance((1.001,), places=(-1,)), torch.tensor([0])), torch.tensor([0])
    assert torch.equal(mixed, guided_between(x.float(), ScaleGuidance((1.001,), places=(-1,)), level_n).bfloat16())
    assert torch.equal(mixed[0], mixed[1])


def test_guidance_between_blocks_leaves_rows_alone_where_it_is_off():
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    level_n, guidance = torch.tensor([0, 1, 1]), ScaleGuidance((1.0, 3.0), places=(-1,))
    mixed = guided_between(x, guidance, level_n)
    assert torch.equal(mixed[:, 0], x[:, 0])
    assert torch.equal(mixed[0, 1:], 3 * x[0, 1:] - 2 * x[2, 1:])
    assert torch.equal(mixed[:2, 1:], mixed[2:, 1:])
    assert guided_between(x, ScaleGuidance((1.0, 1.0), places=(-1,)), level_n) is x


def test_the_text_rounds_in_every_dtype_and_only_where_it_is_the_law():
    network = InfinityTransformer(SMALL, filled_weights(infinity_shapes(SMALL)))
    text = [torch.randn(4, 128, generator=torch.Generator().manual_seed(1))]
    for dtype in (torch.float32, torch.float64):
        of_law, exact = (
            replace(network, config=replace(SMALL, rounds=rounds)).to("cpu", dtype).condition(text).cond_RD
            for rounds in (True, False)
        )
        assert 1e-5 < float((of_law - exact).abs().max()) < 1e-1


def test_bits_are_spread_over_patches_as_the_page_says():
    bits = torch.arange(2 * 3 * 16).view(1, -1) % 2
    map_BChw = to_map(torch.arange(2 * 3 * 16).view(1, -1), 2, 3, 4)
    assert map_BChw.shape == (1, 4, 4, 6)
    # channel 4·ch + 2·i + j of position (y, x) is channel ch at (2y+i, 2x+j)
    assert int(map_BChw[0, 2, 2 * 1 + 1, 2 * 2 + 0]) == (1 * 3 + 2) * 16 + 4 * 2 + 2 * 1 + 0
    assert torch.equal(from_map(map_BChw, 2), torch.arange(2 * 3 * 16).view(1, -1))
    codes = BinaryQuantizer(4, torch.tensor(0.5)).codes(bits, 2, 3)
    torch.testing.assert_close(codes, (2 * to_map(bits, 2, 3, 4) - 1) * 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pyramid": ScalePyramid(sides=((1, 1),) * 16, channels=4)}, "must be at most 15 scales"),
        ({"pyramid": ScalePyramid(sides=((1, 1), (129, 2)), channels=4)}, "must lie in 1..128"),
        ({"full": (130, 130)}, "must lie in 1..128, full ones too"),
        ({"pyramid": replace(SMALL.pyramid, channels=8)}, "channels=8: must be C=4, or 4C where patchified"),
        ({"H": 3}, "D=32: must be a multiple of 4H, H=3"),
        ({"pool_heads": 3}, "D=32: must be a multiple of 4H, H=2, and of pool=3"),
        ({"pool_heads": 0}, "H, pool heads, chunks=(2, 0, 1): must be positive"),
        ({"chunks": 2}, "depth=3: must be a multiple of chunks=2"),
        ({"rule": 3}, "position rule=3: must be 0, 1 or 2"),
    ],
)
def test_sizes_that_the_family_does_not_have_are_refused(change: dict, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        replace(SMALL, **change)


TEXT, LONG, NARROW = (Rows(torch.zeros(T, A)) for T, A in ((2, 128), (7, 128), (2, 64)))
RIGHT = Request((0,), texts=(TEXT,), scale_guidance=ScaleGuidance((3.0, 2.0)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts": ()}, "texts=0: must be given, and guidance by scale"),
        ({"scale_guidance": None}, "must be given, and guidance by scale"),
        ({"labels": (1,)}, "labels=(1,): must number texts"),
        ({"labels": None, "count": 1, "order": "batch"}, "labels=None: must number texts: nothing draws them"),
        ({"texts": (LONG,)}, "texts=[(7, 128)]: must be 1..6 rows of width 128"),
        ({"texts": (NARROW,)}, "texts=[(2, 64)]"),
        ({"negative_texts": (TEXT, TEXT)}, "negative_texts=2: must be one a text (1)"),
        ({"scale_guidance": ScaleGuidance((3.0, 2.0), places=(-3,))}, "places=(-3,): must be 0, 1 or -1..-2"),
        ({"scale_guidance": ScaleGuidance((3.0, 2.0), places=(2,))}, "places=(2,)"),
    ],
)
def test_requests_that_the_network_cannot_answer_are_refused(change: dict, said: str):
    SMALL.check_request(RIGHT)
    with pytest.raises(InputError, match=re.escape(said)):
        SMALL.check_request(replace(RIGHT, **change))


def test_labels_in_place_of_texts_are_named():
    network = InfinityTransformer(SMALL, filled_weights(infinity_shapes(SMALL)))
    with pytest.raises(TypeError, match="takes the texts of its guidance rows, no labels"):
        network.condition(torch.tensor([3, 10]))  # type: ignore[arg-type]
    texts_RTA = torch.randn(2, 3, SMALL.A, generator=torch.Generator().manual_seed(0))  # of one length, in one tensor
    alike = network.condition(texts_RTA).cond_RD  # type: ignore[arg-type]
    assert torch.equal(alike, network.condition(list(texts_RTA)).cond_RD)
