"""What a decoder's process may take."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from harness.errors import InputError

TIMEOUT_S = 600.0  # a decode of ten images by the published sizes takes seconds on a GPU, minutes on a CPU


@dataclass(frozen=True)
class Limits:
    """What a decoder's process may take.

    Args:
        timeout_s: seconds of one decode.
        memory_gib: GiB that it may allocate on the host; 0 = no limit.

    Raises:
        InputError: no such time or memory.
    """

    timeout_s: float = TIMEOUT_S
    memory_gib: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise InputError("timeout", self.timeout_s, "must be a number of seconds above 0", "pass --timeout 600")
        if not 0 <= self.memory_gib < float("inf"):
            raise InputError("memory", self.memory_gib, "must be 0 GiB or more", "pass --memory 0 for no limit")

    def bound_memory(self) -> None:
        """Let this process, and what it starts, allocate no more than `memory_gib`. Effects: its limits."""
        if self.memory_gib:
            most = int(self.memory_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
