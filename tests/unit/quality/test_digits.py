"""The digits classifier that ships: how good it is, its unit and size; real digits are seen as drawn ones are."""

from __future__ import annotations

import pytest
import torch

from harness.errors import InputError
from harness.quality.features import DATA, head, load_features, load_real, padded, parameter_shapes
from tests.helpers import digits, recorded


def test_it_knows_digits_that_it_was_not_trained_on():
    tensors, _ = recorded("encode-cpu")
    features_BD, digits_B = load_features()(padded(tensors["images_u8"].float() / 255))
    assert float((digits_B == tensors["labels"]).double().mean()) >= 0.98
    assert features_BD.shape == (200, 32)


def test_the_held_out_digits_are_known_by_their_features():
    features = load_features()
    features_ND, labels_N = load_real()
    embedding_ND = features_ND @ torch.linalg.inv(features.weights["whiten_DD"]) + features.weights["mean_D"]
    right = (head(features.weights, embedding_ND).argmax(1) == labels_N).double().mean()
    assert float(right) >= 0.98
    assert labels_N[:12].tolist() == [*range(10), 0, 1]
    assert labels_N.bincount().tolist() == [len(labels_N) // 10] * 10


def test_a_unit_is_a_standard_deviation_of_real_digits():
    features_ND, _ = load_real()
    half = 2**-10  # they are stored in float16
    torch.testing.assert_close(features_ND.mean(0), torch.zeros(32), atol=half, rtol=0)
    torch.testing.assert_close(torch.cov(features_ND.T), torch.eye(32), atol=4 * half, rtol=0)


def test_the_data_are_small_and_whole():
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 2**20
    weights = load_features().weights
    assert {name: tuple(weights[name].shape) for name in parameter_shapes()} == parameter_shapes()
    assert weights.keys() - parameter_shapes().keys() == {"mean_D", "whiten_DD"}


def test_real_digits_look_as_the_pair_draws_them():
    tensors, _ = recorded("encode-cpu")
    pair, image_B3hw = digits(), padded(tensors["images_u8"][:8].float() / 255)
    tokens_BL, _ = pair.vae.encode(image_B3hw * 2 - 1, pair.pyramid)
    assert torch.equal(tokens_BL, tensors["tokens"][:8])


def test_other_images_are_refused():
    with pytest.raises(InputError, match=r"^image=\(3, 16, 16\): must be \(3, 32, 32\).*pass --features FILE"):
        load_features()(torch.zeros(1, 3, 16, 16))
