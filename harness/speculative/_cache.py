"""The KV cache of one network in one decode.

Promise: preallocated once; slot = absolute position, so nothing ever moves; every image has a length of its own, and
`rollback` only lowers it. Slots at or beyond an image's length are never read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.models.network import Network


class KVCache:
    """Keys and values of B images over the network's L positions, of each its one or two guidance rows (`halves`)."""

    def __init__(self, network: Network, B: int, halves: int = 2) -> None:
        config = network.config
        shape = (config.depth, 2, halves * B, config.H, config.pyramid.L, config.D // config.H)
        self.kv = torch.zeros(shape, device=network.device, dtype=network.dtype)
        self.lengths = [0] * B

    def bytes(self) -> int:
        """Bytes held: depth · D · L · R · 2 · bytes per number."""
        return self.kv.numel() * self.kv.element_size()

    def window(self, images: list[int]) -> CacheWindow:
        """Return the view that a pass over `images`, all of one length, writes through; `commit` raises that."""
        return CacheWindow(self, images)

    def rollback(self, image: int, length: int) -> None:
        """Forget everything of `image` from position `length` on; a longer length than now is left alone."""
        self.lengths[image] = min(self.lengths[image], length)


class CacheWindow:
    """One forward pass's door to the cache; meets the networks' `Cache` protocol."""

    def __init__(self, cache: KVCache, images: list[int]) -> None:
        self.cache, self.images = cache, images
        B = len(cache.lengths)
        self.start = cache.lengths[images[0]]
        whole = images == list(range(B))
        rows = [first + b for first in range(0, cache.kv.shape[2], B) for b in images]
        self.rows_R: Tensor | None = None if whole else torch.tensor(rows, device=cache.kv.device)

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        """Write n positions after the images' length; return keys and values of all positions so far."""
        k_slots, v_slots = self.cache.kv[layer]
        end = self.start + k_RHnc.shape[2]
        new = slice(self.start, end)
        if self.rows_R is None:
            k_slots[:, :, new], v_slots[:, :, new] = k_RHnc, v_RHnc
            return k_slots[:, :, :end], v_slots[:, :, :end]
        k_slots[self.rows_R, :, new], v_slots[self.rows_R, :, new] = k_RHnc, v_RHnc
        return k_slots[self.rows_R, :, :end], v_slots[self.rows_R, :, :end]

    def commit(self, end: int) -> None:
        """Raise the images' lengths to `end`: what was written, by this pass or by the replay of an equal one."""
        for image in self.images:
            self.cache.lengths[image] = end


NewCache = Callable[..., KVCache]  # (network, B, halves=2) -> an empty cache
