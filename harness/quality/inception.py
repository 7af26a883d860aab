"""Features and statistics for real checkpoints: Inception's pool features from a weights file that the user names.

Promise: nothing is downloaded; the network is torch-fidelity's port of the published Inception, and statistics are
those of an `.npz` with `mu` and `sigma`, as the ADM evaluation suite stores them. Classes are not recognised.

Source: Heusel et al. 2017; torch-fidelity, `inception-v3-compat`; guided-diffusion's evaluations.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import InputError, text_of
from harness.files import check_readable
from harness.quality.distances import Moments
from harness.quality.measure import Real

D = 2048  # of the pool features
ASYMMETRY = 1e-6  # of a stored covariance, as a share of its largest entry: float32 sums of millions of products
Build = Callable[[Path], nn.Module]


@dataclass(frozen=True)
class InceptionFeatures:
    """Features of colour images of any size.

    Args:
        network: takes uint8 images (B,3,h,w), resizes them itself, and returns features_BD first.
        name: says which file.
        D: features.
    """

    network: nn.Module
    name: str
    D: int = D
    unit: str = "that of FID: squared Inception features"
    classes: int = 0

    def to(self, device: torch.device) -> InceptionFeatures:
        """Return it with its network on a device."""
        return replace(self, network=self.network.to(device))

    @torch.inference_mode()
    def __call__(self, image_B3hw: Tensor) -> tuple[Tensor, None]:
        """Return features_BD of images in [0, 1], rounded to bytes as image files are. Raises `InputError`."""
        bytes_B3hw = (image_B3hw.float() * 255).round().clamp(0, 255).to(torch.uint8)
        features_BD = self.network(bytes_B3hw)[0].flatten(1)
        if features_BD.shape[1] != self.D:
            rule = f"gives {features_BD.shape[1]} features, not {self.D}"
            raise InputError("features", self.name, rule, "pass a weights file of torch-fidelity's Inception")
        return features_BD, None


def torch_fidelity(path: Path) -> nn.Module:
    """Return torch-fidelity's Inception with weights of a file. Raises `InputError` where it is not installed."""
    if importlib.util.find_spec("torch_fidelity") is None:
        rule = "needs torch-fidelity's Inception, which is not installed"
        raise InputError("features", str(path), rule, 'pip install "sdvar-harness[inception]"')
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: PLC0415

    made: nn.Module = FeatureExtractorInceptionV3(
        "inception-v3-compat", [str(D)], feature_extractor_weights_path=str(path)
    )
    return made


def load_inception(path: Path, build: Build = torch_fidelity) -> InceptionFeatures:
    """Load the features of a weights file.

    Args:
        path: torch-fidelity's `weights-inception-2015-12-05-*.pth`.
        build: makes the network; another one where features of another network are wanted.

    Raises:
        InputError: no such file, not what `build` takes, or torch-fidelity is not installed.
    """
    check_readable(path, "features", "pass torch-fidelity's Inception weights file")
    try:
        network = build(path).eval().requires_grad_(False)
    except InputError:
        raise
    except Exception as error:  # of whatever kind: it is another library that reads the file
        rule = f"cannot be loaded ({type(error).__name__}: {text_of(error)[:200]})"
        raise InputError("features", str(path), rule, "pass torch-fidelity's Inception weights file") from None
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return InceptionFeatures(network, f"Inception, {path.name} ({digest})", getattr(network, "num_features", D))


def load_statistics(path: Path) -> Real:
    """Load real data's mean and covariance of features.

    Args:
        path: `.npz` with `mu` (D,) and `sigma` (D, D).

    Raises:
        InputError: no such file, or no such statistics: a name missing, another shape, a number that is not finite,
            a covariance that is not symmetric.
    """
    check_readable(path, "real", "pass an .npz of the ADM evaluation, with mu and sigma")
    remedy = "pass an .npz of the ADM evaluation, with mu and sigma"
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
    if (
        np.abs(covariance - covariance.T).max() > ASYMMETRY * np.abs(covariance).max()
        or (covariance.diagonal() < 0).any()
    ):
        raise InputError("real", str(path), "has a sigma that is no covariance", remedy)
    return Real(path.name, Moments.of_law(torch.from_numpy(mean), torch.from_numpy(covariance)))
