"""Wall time of device work. Promise: a median of several runs, the device idle before and after each."""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what `run` returns, and its seconds, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    result = run()
    _wait(device)
    return result, time.perf_counter() - start


def median_ms(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median of `repeats` runs in milliseconds, after one that does not count."""
    run()
    return 1e3 * statistics.median(timed(run, device)[1] for _ in range(repeats))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
