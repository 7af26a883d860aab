"""What the process of a decoder may take, and what it shares with the one that starts it.

Promise: a limit that nobody can mean is bad input; `Surroundings` are all that two processes share, so that both
compute the same.
"""

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from harness.errors import InputError
from harness.rounding import precision, set_precision

TIMEOUT_S = 600.0  # a decode of ten images by the published sizes takes seconds on a GPU, minutes on a CPU


class OutOfTimeError(BaseException):
    """A decode is taking too long; no `Exception`, so that a decoder cannot swallow it by accident."""


@dataclass(frozen=True)
class Limits:
    """What a decoder's process may take. Raises `InputError`: no such time or memory."""

    timeout_s: float = TIMEOUT_S  # seconds of one decode
    memory_gib: float = 0.0  # GiB that it may allocate on the host; 0 = no limit
    allow_write: tuple[str, ...] = ()  # folders that it may write to, besides its own
    connects: bool = True  # it may connect to others by TCP, a cluster's scheduler among them

    def __post_init__(self) -> None:
        object.__setattr__(self, "allow_write", tuple(str(Path(folder).absolute()) for folder in self.allow_write))
        if not 0 < self.timeout_s < float("inf"):
            raise InputError("timeout", self.timeout_s, "must be a number of seconds above 0", "pass --timeout 600")
        if not 0 <= self.memory_gib < float("inf"):
            raise InputError("memory", self.memory_gib, "must be 0 GiB or more", "pass --memory 0 for no limit")

    def bound_memory(self) -> None:
        """Let this process, and what it starts, allocate no more than `memory_gib`. Effects: its limits."""
        if self.memory_gib:
            most = int(self.memory_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@dataclass(frozen=True)
class Surroundings:
    """What a process shares with the one that starts it, so that both compute the same."""

    tf32: bool  # the mode of precision
    threads: int  # that PyTorch computes with
    path: tuple[str, ...]  # where modules are found

    @classmethod
    def here(cls) -> Self:
        path = tuple(folder or str(Path.cwd()) for folder in sys.path)
        return cls(precision()["tf32_matmul"], torch.get_num_threads(), path)

    def restore(self, path: Sequence[str] | None = None) -> None:
        """Make them those of this process."""
        sys.path[:] = self.path if path is None else path
        set_precision(self.tf32)
        torch.set_num_threads(self.threads)
