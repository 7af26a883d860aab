"""The digest of a set of tensors.

Promise: it depends on names, dtypes, shapes and bytes alone, not on the order of the set or on a file's layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def content_digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of tensors, sorted by name, and of a text that belongs to them."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
