"""Who does the work: this process, processes of this machine, or a cluster.

Promise: one answer for everything that is spread, verifications, hunts and benches alike.
"""

from dataclasses import dataclass

import torch

from harness.errors import InputError
from harness.pool._cluster import Cluster
from harness.pool._workers import Alone, Pool, Processes, Work

MOST_WORKERS = 1024


@dataclass(frozen=True)
class Parallelism:
    """How work is spread. Raises `InputError` for a number of workers that nobody has, or workers of both kinds."""

    workers: int = 1  # processes on this machine; 1 = this process alone, 0 = one a GPU that the device stands for
    cluster: str = ""  # address of a Dask scheduler whose workers do the work; empty = none
    device: str = ""  # as it was asked for, since cuda stands for every GPU; empty = where the networks lie

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= MOST_WORKERS:
            raise InputError("workers", self.workers, f"must lie in 0..{MOST_WORKERS}", "pass --workers 0: one a GPU")
        if self.cluster and self.workers > 1:
            raise InputError("cluster", self.cluster, "brings its own workers", "drop --workers")


ALONE = Parallelism()  # this process does it all


@dataclass(frozen=True)
class Crew:
    """Who will do the work."""

    devices: tuple[str, ...]  # of every worker
    cluster: str = ""  # address of a scheduler; empty = none

    @property
    def is_elsewhere(self) -> bool:
        """Whether the work leaves this process."""
        return bool(self.cluster) or len(self.devices) > 1

    def open(self, work: Work) -> Pool:
        """Start the workers. Raises as `Processes` and `Cluster` do; `close` ends them."""
        if self.cluster:
            return Cluster(work, self.cluster, self.devices[0])
        if self.is_elsewhere:
            return Processes(work, self.devices)
        return Alone(work, self.devices[0])


def employ(parallelism: Parallelism, device: torch.device, tasks: int) -> Crew:
    """Return who does so many tasks on a device.

    A CUDA device without a number stands for all of this machine; a CPU is one device. More workers than devices share
    them, and nobody is hired who would have nothing to do. Raises `InputError` for several workers on one numbered CUDA
    device, which they would fight for.
    """
    if parallelism.cluster:
        return Crew((device.type,), parallelism.cluster)
    there = [str(device)]
    if device.type == "cuda" and device.index is None:
        there = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    elif device.type == "cuda" and parallelism.workers > 1:
        rule = f"would share {device}"
        raise InputError("workers", parallelism.workers, rule, "pass --device cuda for all GPUs, or --workers 1")
    count = max(1, min(parallelism.workers or len(there), tasks))
    return Crew((str(device),)) if count == 1 else Crew(tuple(there[k % len(there)] for k in range(count)))
