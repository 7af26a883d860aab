"""Files of weights of every kind, right ones and wrong ones: functions that make one in a folder."""

from __future__ import annotations

import json
import math
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import LAYOUTS, Layout, tiny

Weights = dict[str, Tensor]
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1244000000\n"


def mask(levels: list[int]) -> Tensor:
    level = torch.tensor(levels)
    visible = level[:, None] >= level[None]
    return torch.zeros(visible.shape).masked_fill(~visible, -math.inf)[None, None]


def state_dict(layout: Layout = LAYOUTS["plain"], seed: int = 0) -> Weights:
    """A transformer's state dict, with every buffer that a published one has."""
    models = tiny(layout, seed=seed)
    levels = models.pyramid.levels()
    biases = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(layout.D) for i in range(layout.depth)}
    return {
        **models.target.weights, **biases,
        "lvl_1L": torch.tensor([levels]), "attn_bias_for_masking": mask(levels),
    }  # fmt: skip


def vae(seed: int = 0) -> Weights:
    return {**tiny(seed=seed).vae.weights, "quantize.ema_vocab_hit_SV": torch.rand(3, 11)}


def prefixed(word: str, tensors: Mapping[str, Tensor]) -> Weights:
    return {f"{word}{name}": tensor for name, tensor in tensors.items()}


def nested(content: object, depth: int) -> object:
    return {"in": nested(content, depth - 1)} if depth else content


def cyclic() -> dict[str, object]:
    """A mapping that holds itself, many times."""
    tree: dict[str, object] = {"model": T}
    tree["logs"] = [[tree] * 40] * 40
    return tree


T, V = state_dict(), vae()
NOT_READ = {"lvl_1L", "attn_bias_for_masking", "quantize.ema_vocab_hit_SV"}


def floating(change: Callable[[Tensor], Tensor]) -> Weights:
    return {name: change(tensor) if tensor.is_floating_point() else tensor for name, tensor in T.items()}


def saved(content: object, name: str = "a.pth", **how: object) -> Callable[[Path], Path]:
    """A maker of a file of torch.save."""

    def make(folder: Path) -> Path:
        torch.save(content, folder / name, **how)
        return folder / name

    return make


def written(content: bytes | str, name: str = "a.pth") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return make


def flipped(folder: Path) -> Path:
    """Save, and turn one bit of the weights: PyTorch loads such a file."""
    path = saved(T)(folder)
    content = bytearray(path.read_bytes())
    content[content.index(T["head.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    return path


def without_sums(folder: Path) -> Path:
    """Save as `torch.serialization.set_crc32_options(False)` does, with zeros for checksums."""
    torch.serialization.set_crc32_options(False)
    try:
        return saved(T)(folder)
    finally:
        torch.serialization.set_crc32_options(True)


def cut(make: Callable[[Path], Path], share: float = 0.5) -> Callable[[Path], Path]:
    def shorten(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return shorten


def safetensors(tensors: Weights, name: str = "a.safetensors") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
        return folder / name

    return make


def sharded(lost: int = 0, suffix: str = "safetensors") -> Callable[[Path], Path]:
    """A maker of a hub's folder: two shards, an index, and a note beside them."""

    def make(folder: Path) -> Path:
        place, names = folder / "hub", sorted(T)
        place.mkdir()
        halves = {f"model-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
        for shard, keys in halves.items():
            part = {key: T[key] for key in keys}
            (safetensors(part, shard) if suffix == "safetensors" else saved(part, shard))(place)
        index = {"metadata": {}, "weight_map": {key: shard for shard, keys in halves.items() for key in keys}}
        (place / f"model.{suffix}.index.json").write_text(json.dumps(index))
        (place / "config.json").write_text('{"model_type": "var"}')
        if lost:
            (place / f"model-0000{lost}-of-00002.{suffix}").unlink()
        return place

    return make


def one_shard(folder: Path) -> Path:
    return sharded()(folder) / "model-00002-of-00002.safetensors"


def one_file(folder: Path) -> Path:
    (folder / "hub").mkdir()
    safetensors(T, "model.safetensors")(folder / "hub")
    saved(T, "pytorch_model.bin")(folder / "hub")
    return folder / "hub"


def several_files(folder: Path) -> Path:
    for name in ("draft.pth", "target.pth"):
        saved(T, name)(folder)
    return folder


def archive(folder: Path) -> Path:
    with tarfile.open(folder / "a.pth", "w") as tar:
        tar.add(safetensors(T, "x")(folder), "x")
    return folder / "a.pth"


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.pth", "w") as packed:
        packed.write(safetensors(T, "x")(folder), "var.safetensors")
    return folder / "a.pth"


def npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", **{name: tensor.numpy() for name, tensor in T.items()})
    return (folder / "a.npz").rename(folder / "a.pth")


def script(folder: Path) -> Path:
    class Small(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(Small(), torch.zeros(1)).save(folder / "a.pth")
    return folder / "a.pth"


def moved(change: Mapping[str, object], lost: tuple[str, ...] = (), of: Weights = T) -> Weights:
    return {**{key: tensor for key, tensor in of.items() if key not in lost}, **change}  # type: ignore[dict-item]


Maker = Callable[[Path], Path]
NO_NORM = state_dict(Layout(l2_norm=False))
NETWORKS_IN_TWO = {"model": T, "ema": state_dict(seed=5)}
CLASSED = "which reading would execute"
