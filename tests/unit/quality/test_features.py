"""Feature networks: the classifier of digits that ships, and Inception from a file; other files are refused."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.errors import InputError
from harness.protocol._request import Request
from harness.quality._draw import control_sources
from harness.quality._features import (
    DATA,
    head,
    load_features,
    load_inception,
    load_real,
    load_statistics,
)
from harness.quality._study import Means, Study, run_study
from scripts.classifier import padded, parameter_shapes
from tests.helpers import digits, recorded
from tests.unit.quality.means import MODELS


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


class StandIn(nn.Module):
    """Takes bytes of any size and returns a tuple, features first, as torch-fidelity's Inception does."""

    num_features = 6

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.project = nn.Linear(12, 6)
        self.load_state_dict(torch.load(path, weights_only=True))

    def forward(self, image_B3hw: Tensor) -> tuple[Tensor]:
        assert image_B3hw.dtype == torch.uint8
        return (self.project(nn.functional.adaptive_avg_pool2d(image_B3hw.float(), 2).flatten(1))[..., None, None],)


def weights(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    state = {"project.weight": torch.rand(6, 12, generator=generator), "project.bias": torch.zeros(6)}
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def test_images_become_bytes_and_then_features(tmp_path: Path):
    features = load_inception(weights(tmp_path), StandIn)
    grey = torch.full((2, 3, 8, 8), 0.5)
    made, classes = pickle.loads(pickle.dumps(features)).to(torch.device("cpu"))(grey)
    assert classes is None
    assert made.shape == (2, features.D) == (2, 6)
    torch.testing.assert_close(made, features.network(torch.full((2, 3, 8, 8), 128, dtype=torch.uint8))[0][..., 0, 0])
    assert "weights.pth (" in features.name


def test_a_file_that_the_network_does_not_take_is_one_line(tmp_path: Path):
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"^features=.*cannot be loaded \(.*pass torch-fidelity's Inception weights"):
        load_inception(tmp_path / "other.pth", StandIn)
    with pytest.raises(InputError, match="no such file"):
        load_inception(tmp_path / "none.pth", StandIn)


def test_another_width_is_refused(tmp_path: Path):
    features = load_inception(weights(tmp_path), StandIn)
    wrong = type(features)(features.network, features.name, 7)
    with pytest.raises(InputError, match="gives 6 features, not 7"):
        wrong(torch.zeros(1, 3, 8, 8))


def test_without_torch_fidelity_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "\.\[inception\]" in the clone'):
        load_inception(weights(tmp_path))


def test_statistics_are_read_as_they_were_written(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.savez(tmp_path / "real.npz", mu=x.mean(0), sigma=np.cov(x.T), mu_s=np.zeros(7))
    real = load_statistics(tmp_path / "real.npz")
    mean = real.law.sum_D / real.law.n
    products = real.law.products_DD - real.law.n * mean.outer(mean)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(products / (real.law.n - 1), np.cov(x.T), rtol=1e-9, atol=1e-12)
    assert real.features_RD is None


BAD = {
    "missing": ({"mu": np.zeros(3)}, "holds no statistics"),
    "shapes": ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"has mu \(3,\) and sigma \(4, 4\)"),
    "scalar": ({"mu": np.zeros(()), "sigma": np.eye(1)}, r"has mu \(\)"),
    "empty": ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"has mu \(0,\)"),
    "nan": ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
    "asymmetric": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.0, 1.0]])}, "no covariance"),
    "negative": ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "no covariance"),
    "words": ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "holds no statistics"),
    "objects": ({"mu": np.array([None]), "sigma": np.eye(1)}, "holds no statistics"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_statistics_are_refused(name: str, tmp_path: Path):
    arrays, rule = BAD[name]
    np.savez(tmp_path / "real.npz", **arrays)
    with pytest.raises(InputError, match=rf"^real=.*{rule}.*pass an .npz of the ADM evaluation"):
        load_statistics(tmp_path / "real.npz")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path):
    for content in (b"", b"PK\x03\x04 cut short", b"text"):
        (tmp_path / "real.npz").write_bytes(content)
        with pytest.raises(InputError, match="holds no statistics"):
            load_statistics(tmp_path / "real.npz")


def test_a_decoder_is_measured_by_such_features_and_statistics(tmp_path: Path):
    """The path of real checkpoints: a weights file, an `.npz`, no class that is recognised."""
    features = load_inception(weights(tmp_path), StandIn)
    images = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x = features(images)[0].double().numpy()
    np.savez(tmp_path / "real.npz", mu=x.mean(0), sigma=np.cov(x.T))
    asked = Study(control_sources(1), 120, 40, (0, 1), Request((0,), 3), 10, most=1e9)
    found = run_study(MODELS, Means(features, load_statistics(tmp_path / "real.npz")), asked)
    row = found.rows[1]
    assert row.width == 6
    assert row.real is not None
    assert row.loss.low <= 0 <= row.loss.high
    assert (row.accuracy, row.precision, row.coverage, row.real_kernel) == (None, None, None, None)
    assert found.verdicts[0].value == "KEPT"
    np.savez(tmp_path / "real.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(InputError, match=r"^real=real.npz: has 5 features, and the images 6"):
        run_study(MODELS, Means(features, load_statistics(tmp_path / "real.npz")), asked)
    alone = run_study(MODELS, Means(features, None), asked)
    assert alone.rows[1].loss is None
    assert alone.verdicts[0].value == "KEPT"
