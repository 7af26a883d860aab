"""Planted losses: each changes the one thing that it says, and nothing else."""

from __future__ import annotations

import pytest
import torch

from harness.errors import InputError
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid
from harness.quality._features import DigitFeatures
from harness.quality._study import Study, check_labels, decoder_sources
from harness.reference.sequential import sample_sequential
from tests import losses as planted
from tests.helpers import Layout, tiny
from tests.toy import toy_pair
from tests.unit.quality.means import corners

MODELS = tiny(Layout((1, 2, 3)))
REQUEST = Request((0, 1, 2), 5, cfg=2.0)


def drawn(factory, request: Request = REQUEST):
    return factory(MODELS, Settings(5, policy="")).decode(request, MODELS.noise(request))


def usual(request: Request = REQUEST):
    return sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))


@pytest.mark.parametrize(
    ("factory", "request_"),
    [
        (planted.labels, Request((1, 2, 0), 5, cfg=2.0)),
        (planted.unguided, Request((0, 1, 2), 5, cfg=0.0)),
    ],
)
def test_another_request_is_drawn(factory, request_: Request):
    made, expected = drawn(factory), usual(request_)
    assert torch.equal(made.tokens_BL, expected.tokens_BL)
    assert not torch.equal(made.tokens_BL, usual().tokens_BL)
    assert made.intermediates is None


def test_blur_leaves_tokens_and_smooths_the_latent_map():
    made, expected = drawn(planted.blur), usual()
    assert torch.equal(made.tokens_BL, expected.tokens_BL)

    def rough(f_hat_BCPP):
        return float((f_hat_BCPP[..., 1:] - f_hat_BCPP[..., :-1]).square().mean())

    assert rough(made.f_hat_BCPP) < 0.8 * rough(expected.f_hat_BCPP)


def test_one_phi_serves_all_scales():
    before = {name: weight.clone() for name, weight in MODELS.vae.weights.items()}
    assert not torch.equal(drawn(planted.phi).f_hat_BCPP, usual().f_hat_BCPP)
    assert all(torch.equal(MODELS.vae.weights[name], weight) for name, weight in before.items())


def test_decoders_are_named_by_what_tells_them_apart():
    own = decoder_sources("harness:build_decoder", [Settings(5, policy="kl:0.1"), Settings(3, True, "rejection")])
    assert [source.name for source in own] == ["kl:0.1", "rejection draft_len 3 bonus"]
    (other,) = decoder_sources("mine:factory", [Settings("", policy="", options=(("checkout", "x"), ("gamma", "2")))])
    assert other.name == "mine:factory gamma=2"


def test_features_of_other_classes_are_refused():
    models = toy_pair(ScalePyramid((1, 2)), 6, seed=1, apart=0.2)
    with pytest.raises(InputError, match=r"^features=digits classifier: knows 10 classes, and the networks 2"):
        check_labels(models, DigitFeatures({}), (0,))
    check_labels(models, corners().features, (0, 1))


def test_what_is_asked_has_sensible_defaults():
    asked = Study([])
    assert (asked.images, asked.blocks, asked.most, asked.labels) == (10_000, 40, None, ())
