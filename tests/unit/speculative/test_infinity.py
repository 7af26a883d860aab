"""The decoder on Infinity draws the bits of the reference, whatever the draft proposes, and is judged as VAR's is."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.models import ModelPair
from harness.models.infinity.autoencoder import InfinityAutoencoder, binary_config, infinity_autoencoder_shapes
from harness.models.infinity.transformer import InfinityConfig, InfinityTransformer, infinity_shapes
from harness.models.var.sizes import filled_weights, random_weights
from harness.protocol import Request, Rows, ScaleGuidance, Settings, request_of, request_values
from harness.protocol.pyramid import ScalePyramid
from harness.reference import _infinity as plain
from harness.reference import sample_cachefree
from harness.reference.sequential import sample_sequential
from harness.speculative import _infinity as fast
from harness.speculative import parts
from harness.speculative.sampler import build_decoder
from tests.helpers import command, decoder_factory, verify_here
from tests.regression.tampered import one_line

# rectangles of both kinds, and one that is smaller than the one before it
SIDES = ((1, 1), (2, 2), (3, 4), (2, 3), (4, 6))
GENERATOR = torch.Generator().manual_seed(0)
TEXTS = tuple(Rows(torch.randn(T, 128, generator=GENERATOR)) for T in (3, 6, 1))
GUIDANCE = ScaleGuidance((3.0, 1.0, 2.0, 3.0, 1.5), (1.0, 0.5, 1.0, 2.0, 0.7))
REQUEST = Request((0, 2, 1), 5, texts=TEXTS, scale_guidance=GUIDANCE)


def pair(C: int = 4, patch: int = 1, dtype: torch.dtype = torch.float64, **options: object) -> ModelPair:
    pyramid = ScalePyramid(sides=SIDES, channels=C * patch * patch)
    target = InfinityConfig(pyramid, 4, 32, 2, C, 128, 6, 256, 1, chunks=2, full=(9, 12), **options)
    draft = replace(target, depth=2, chunks=1)
    configs = enumerate((target, draft))
    large, small = (
        InfinityTransformer(config, random_weights(infinity_shapes(config), 2 - k)) for k, config in configs
    )
    sizes = binary_config(C, 32, (1, 2), 1)
    vae = InfinityAutoencoder(sizes, filled_weights(infinity_autoencoder_shapes(sizes)))
    return ModelPair(small, large, vae).to("cpu", dtype)


@pytest.mark.parametrize("places", [(0,), (-1,), (0, -1), (1,)])
@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, top_p=0.9, order="batch"),
        replace(REQUEST, negative_texts=TEXTS[::-1], filters=((0, 0.0), (1, 0.0), (0, 0.9), (0, 0.0), (2, 0.6))),
        replace(REQUEST, scale_guidance=replace(GUIDANCE, weights=(1.0,) * 5)),
    ],
)
def test_three_ways_of_decoding_give_the_same_bits(request_: Request, places: tuple[int, ...]):
    request = replace(request_, scale_guidance=replace(request_.scale_guidance, places=places))
    for models in (pair(), pair(patch=2, levels_once=False, shared_adaln=False)):
        expected = sample_sequential(models.target, models.vae, request, models.noise(request))
        free = sample_cachefree(models.target, models.vae, request, models.noise(request))
        assert torch.equal(free, expected.tokens_BL)
        for settings in (Settings(1), Settings(2, bonus=True), Settings(5)):
            decoded = build_decoder(models, settings).decode(request, models.noise(request))
            assert torch.equal(decoded.tokens_BL, expected.tokens_BL), settings


def test_both_sides_put_every_row_at_the_same_place():
    pyramid = ScalePyramid(sides=((1, 1), (54, 18), (72, 24)), channels=4)
    config = replace(pair().target.config, pyramid=pyramid, full=(111, 37))
    network = InfinityTransformer(config, pair().target.weights)
    where = plain.positions(network, 0, 2)
    assert torch.equal(where, fast.positions(network, 0, 2))
    assert where[1 + 27 * 18].tolist() == [1, 56, 0]  # 55.5 is 56 in float32, 55 in float64
    assert torch.equal(fast.positions(network, 1, 1), where[1 : 1 + 54 * 18])


@pytest.mark.parametrize("options", [{"rule": 0}, {"rule": 1}, {"fused": False}])
def test_other_rules_of_positions_are_the_references_alone(options: dict[str, object]):
    models = pair(**options)
    assert sample_sequential(models.target, models.vae, REQUEST, models.noise(REQUEST)).tokens_BL.shape == (3, 47 * 4)
    with pytest.raises(InputError, match=r"position rule=.* the reference alone decodes"):
        build_decoder(models, Settings(2)).decode(REQUEST, models.noise(REQUEST))


def test_what_the_draft_cannot_do_is_refused():
    models, deep = pair(), replace(GUIDANCE, places=(-3,))
    with pytest.raises(InputError, match=r"places=.* must be 0, 1 or -1..-1, after a block other than the first"):
        build_decoder(models, Settings(2)).decode(replace(REQUEST, scale_guidance=deep), models.noise(REQUEST))


def test_forced_scales_are_drawn_and_thrown_away():
    models = pair()
    request, draws = replace(REQUEST, order="batch"), models.pyramid.draws
    free = sample_sequential(models.target, models.vae, request, models.noise(request))
    given = 1 - free.tokens_BL[:, : draws.end(1)]
    forced = sample_sequential(models.target, models.vae, request, models.noise(request), given)
    assert torch.equal(forced.tokens_BL[:, : draws.end(0)], free.tokens_BL[:, : draws.end(0)])
    whole = torch.cat((given, forced.tokens_BL[:, draws.end(1) :]), 1)
    again = sample_sequential(models.target, models.vae, request, models.noise(request), whole)
    assert torch.equal(again.tokens_BL, forced.tokens_BL)
    assert torch.equal(again.f_hat_BCPP, forced.f_hat_BCPP)
    assert not torch.equal(forced.f_hat_BCPP, free.f_hat_BCPP)


def test_the_right_decoder_is_identical_and_a_wrong_one_is_not():
    models = pair()
    assert verify_here(models, build_decoder, [Settings(2), Settings(3, True)], [REQUEST]).verdict is Verdict.IDENTICAL

    def without_temperature(rows, pyramid, guidance, first, last):
        return fast.guide(rows, pyramid, replace(guidance, temperatures=()), first, last)

    def from_the_first_position(network, first, last):
        return fast.positions(network, 0, last)[: network.pyramid.end(last) - network.pyramid.begin(first)]

    for places, wrong in product(
        ((0,), (-1,)), ({"guide": without_temperature}, {"positions": from_the_first_position})
    ):
        asked = replace(REQUEST, scale_guidance=replace(GUIDANCE, places=places))
        build = decoder_factory(replace(parts.INFINITY, **wrong))
        assert verify_here(models, build, [Settings(2)], [asked]).verdict is Verdict.DEFECT


def test_negative_texts_travel_as_json_and_are_refused_by_var():
    request = replace(REQUEST, negative_texts=TEXTS[::-1])
    assert request_of(request_values(request)) == request
    assert "negative_texts" not in request_values(REQUEST)
    with pytest.raises(InputError, match="negative_texts=given: is nothing that the family toy reads"):
        request.check_for(type("Sizes", (), {"pyramid": pair().pyramid, "V": 2, "classes": 3, "family": "toy",
                                             "reads": ("texts", "scale_guidance")}))  # fmt: skip


def test_the_command_names_a_checkpoint_of_the_other_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_file({name: w.float() for name, w in pair().target.weights.items()}, tmp_path / "infinity.safetensors")
    words = [
        word for side in ("draft", "target", "vae") for word in (f"--{side}", str(tmp_path / "infinity.safetensors"))
    ]
    assert command(monkeypatch, "verify", *words, "--seeds", "0:1") == 2
    assert "is an Infinity transformer, not one of VAR; pass networks of one family" in one_line(capsys)
