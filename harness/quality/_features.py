"""What images are measured by: the digits classifier, which ships, and Inception, from a file that the user names.

Promise: both are pure functions of frozen weights. The classifier's features are in standard deviations of real digits,
so that the real digits have mean 0 and covariance 1 in every direction; `scripts/classifier.py` is the recipe of its
weights. Nothing is downloaded: Inception is torch-fidelity's port of the published one, and statistics are those of an
`.npz` with `mu` and `sigma`, as the ADM evaluation suite stores them; it recognises no classes.

Source: Heusel et al. 2017; torch-fidelity, `inception-v3-compat`; guided-diffusion's evaluations.
"""

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.errors import InputError, check_installed, text_of
from harness.files import check_readable
from harness.quality._distances import Moments, with_labels

SIDE, CLASSES, D = 32, 10, 32  # pixels, digits, features
LAYERS = 3  # convolutions
DATA = Path(str(files("harness.quality") / "data"))


class Features(nn.Module):
    """What images in [0, 1] are measured by: here nothing, where a loss in nats alone is asked for."""

    name: str = "nothing"  # for people
    unit: str = ""  # of a Fréchet distance
    D: int = 0  # number of features
    classes: int = 0  # that it recognises; 0 = none, and then labels are not judged

    def forward(self, image_B3hw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features_BD, and the class of each image where there are classes."""
        return image_B3hw.new_zeros(len(image_B3hw), 0), None


@dataclass(frozen=True)
class Real:
    """Real data: a law, and features where there are any."""

    name: str  # for people
    law: Moments  # mean and covariance, of features alone or joined by labels
    features_RD: Tensor | None = None  # features, joined alike; None where only the law is stored

    @classmethod
    def of(cls, name: str, features_RD: Tensor, labels_R: Tensor, classes: int) -> Self:
        """Return real data of which every feature is there; labels are joined where classes are recognised."""
        joined = with_labels(features_RD, labels_R, classes) if classes else features_RD
        return cls(name, Moments.of(joined), joined)


def trunk(weights: Mapping[str, Tensor], image_B1hw: Tensor) -> Tensor:
    """Return what the convolutions make of images in [0, 1], flat."""
    x = image_B1hw
    for k in range(LAYERS):
        x = F.max_pool2d(F.relu(F.conv2d(x, weights[f"conv.{k}.weight"], weights[f"conv.{k}.bias"], padding=1)), 2)
    return x.flatten(1)  # (B, C, h, w) -> (B, C·h·w)


def embed(weights: Mapping[str, Tensor], flat_BF: Tensor) -> Tensor:
    """Return embedding_BD, before its ReLU."""
    return F.linear(flat_BF, weights["embed.weight"], weights["embed.bias"])


def head(weights: Mapping[str, Tensor], embedding_BD: Tensor) -> Tensor:
    """Return the logits_BK of the ten digits."""
    return F.linear(F.relu(embedding_BD), weights["head.weight"], weights["head.bias"])


class DigitFeatures(Features):
    """Features of digits, of images of their size alone."""

    name, unit, D, classes = "digits classifier", "squared standard deviations of real digits", D, CLASSES

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        # those that are trained (scripts/classifier.py), with `mean_D` and `whiten_DD`, which give features their unit
        self.weights = weights

    def to(self, device: torch.device) -> Self:  # type: ignore[override]  # what else a module takes nobody asks
        return type(self)({name: weight.to(device) for name, weight in self.weights.items()})

    @torch.inference_mode()
    def forward(self, image_B3hw: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(image_B3hw.shape[1:]) != (3, SIDE, SIDE):
            rule = f"must be (3, {SIDE}, {SIDE}) for the {self.name}"
            raise InputError("image", tuple(image_B3hw.shape[1:]), rule, "pass --features FILE for other images")
        grey_B1hw = image_B3hw.float().mean(1, keepdim=True)
        embedding_BD = embed(self.weights, trunk(self.weights, grey_B1hw))
        features_BD = (embedding_BD - self.weights["mean_D"]) @ self.weights["whiten_DD"]
        return features_BD, head(self.weights, embedding_BD).argmax(1)


def load_features() -> DigitFeatures:
    """Load the features that ship with the package."""
    return DigitFeatures(load_file(DATA / "classifier.safetensors"))


def load_real() -> tuple[Tensor, Tensor]:
    """Load features_ND and labels_N of the real digits that ship with the package: none was trained on."""
    tensors = load_file(DATA / "real.safetensors")
    return tensors["features_ND"].float(), tensors["labels_N"].long()


POOL_D = 2048  # features of Inception
ASYMMETRY = 1e-6  # of a stored covariance, as a share of its largest entry: float32 sums of millions of products
Build = Callable[[Path], nn.Module]


class InceptionFeatures(Features):
    """Features of colour images of any size, rounded to bytes as image files are."""

    unit = "that of FID: squared Inception features"

    def __init__(self, network: nn.Module, name: str, D: int) -> None:
        super().__init__()
        self.network = network  # takes uint8 images (B,3,h,w), resizes them itself, and returns features_BD first
        self.name, self.D = name, D

    @torch.inference_mode()
    def forward(self, image_B3hw: Tensor) -> tuple[Tensor, None]:
        bytes_B3hw = (image_B3hw.float() * 255).round().clamp(0, 255).to(torch.uint8)
        features_BD = self.network(bytes_B3hw)[0].flatten(1)
        if features_BD.shape[1] != self.D:
            rule = f"gives {features_BD.shape[1]} features, not {self.D}"
            raise InputError("features", self.name, rule, "pass a weights file of torch-fidelity's Inception")
        return features_BD, None


def torch_fidelity(path: Path) -> nn.Module:
    """Return torch-fidelity's Inception with weights of a file. Raises `InputError` where it is not installed."""
    check_installed("torch_fidelity", "inception", "features", str(path), "needs torch-fidelity's Inception")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: PLC0415

    network: nn.Module = FeatureExtractorInceptionV3(
        "inception-v3-compat", [str(POOL_D)], feature_extractor_weights_path=str(path)
    )
    return network


def load_inception(path: Path, build: Build = torch_fidelity) -> InceptionFeatures:
    """Load the features of torch-fidelity's weights file, or of what else `build` takes. Raises `InputError`."""
    check_readable(path, "features", "pass torch-fidelity's Inception weights file")
    try:
        network = build(path).eval().requires_grad_(False)
    except InputError:
        raise
    except Exception as error:  # of whatever kind: it is another library that reads the file
        rule = f"cannot be loaded ({type(error).__name__}: {text_of(error)[:200]})"
        raise InputError("features", str(path), rule, "pass torch-fidelity's Inception weights file") from None
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return InceptionFeatures(network, f"Inception, {path.name} ({digest})", getattr(network, "num_features", POOL_D))


def load_statistics(path: Path) -> Real:
    """Load real data's mean and covariance of features, from an `.npz` with `mu` (D,) and `sigma` (D, D).

    Raises `InputError` for no such file, or no such statistics: a name missing, another shape, a number that is not
    finite, a covariance that is not symmetric.
    """
    remedy = "pass an .npz of the ADM evaluation, with mu and sigma"
    check_readable(path, "real", remedy)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            mean, covariance = np.asarray(stored["mu"], float), np.asarray(stored["sigma"], float)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise InputError("real", str(path), f"holds no statistics ({text_of(error)})", remedy) from None
    if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
        rule = f"has mu {mean.shape} and sigma {covariance.shape}, which must be (D,) and (D, D)"
        raise InputError("real", str(path), rule, remedy)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError("real", str(path), "holds a number that is not finite", remedy)
    asymmetry = np.abs(covariance - covariance.T).max()
    if asymmetry > ASYMMETRY * np.abs(covariance).max() or (covariance.diagonal() < 0).any():
        raise InputError("real", str(path), "has a sigma that is no covariance", remedy)
    return Real(path.name, Moments.of_law(torch.from_numpy(mean), torch.from_numpy(covariance)))
