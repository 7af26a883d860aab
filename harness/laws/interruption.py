"""A source of numbers that fails, to interrupt a decode in mid-round."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from harness.protocol.noise import Noise


class Interrupted(Exception):  # noqa: N818
    """What the broken noise raises."""


class BrokenNoise:
    """Numbers that fail at the k-th reading."""

    def __init__(self, noise: Noise, k: int) -> None:
        self.noise, self.left = noise, k

    def __getattr__(self, name: str) -> Any:
        """Pass on what is not a reading."""
        return getattr(self.noise, name)

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        """Read, or fail."""
        self._count()
        return self.noise.exponential(si, stream, reader)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        """Read, or fail."""
        self._count()
        return self.noise.uniform(si, stream, reader)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
