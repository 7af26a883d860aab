"""What a KV cache is, however it stores: a list of positions an image. Promise: plain enough to be seen right."""

from __future__ import annotations

import torch
from torch import Tensor


class ListCache:
    """A model of a cache: keys and values of all layers, appended and cut off.

    Args:
        B: images.
    """

    def __init__(self, B: int) -> None:
        self.positions: list[list[Tensor]] = [[] for _ in range(B)]  # one (layer, key or value, half, H, c) a position

    @property
    def lengths(self) -> list[int]:
        """Number of positions of every image."""
        return [len(positions) for positions in self.positions]

    def extend(self, images: list[int], kv: Tensor) -> Tensor:
        """Append n positions to these images, all of one length; return all of their positions so far.

        Args:
            images: a group.
            kv: (layer, 2, R, H, n, c): keys and values of the group's guidance rows, conditional half first.

        Returns:
            Likewise (layer, 2, R, H, K + n, c).
        """
        for k, image in enumerate(images):
            self.positions[image] += kv[:, :, [k, len(images) + k]].unbind(4)
        by_image = [torch.stack(self.positions[image], 4) for image in images]
        return torch.stack(by_image, 3).flatten(2, 3)

    def rollback(self, image: int, length: int) -> None:
        """Forget everything of `image` from position `length` on."""
        del self.positions[image][length:]
