"""Wall time of device work. Promise: a median of several runs, the device idle before and after each."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """What several runs took, milliseconds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Self:
        """Return what these samples come to."""
        return cls(statistics.median(samples_ms), min(samples_ms), max(samples_ms))


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what `run` returns, and its seconds, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    result = run()
    _wait(device)
    return result, time.perf_counter() - start


def times_of(run: Callable[[], object], repeats: int, device: torch.device) -> Times:
    """Return what `repeats` runs take, after one that does not count."""
    run()
    return Times.of([1e3 * timed(run, device)[1] for _ in range(repeats)])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
