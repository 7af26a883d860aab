"""CUDA graphs: device work over fixed scales is recorded once and replayed afterwards.

Promise: the same kernels on the same numbers, with the launches saved. A graph knows addresses, not tensors, so what
recorded work reads and writes lives in a workspace that outlives the decodes of one batch size: weights, caches,
buffers, and the decode's random numbers, which are copied to fixed addresses. What a replay returns holds until any
other work of the workspace runs, or, where it was recorded as lasting, until the same work runs again.
"""

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from harness.models import ModelPair
from harness.protocol.noise import Noise
from harness.speculative import Launcher, NewCache

T = TypeVar("T")
WARM_UPS = 2  # runs before recording: library handles and workspaces are made outside the graph
Address = tuple[str, int, str, str]  # "exponential" or "uniform", scale, stream, reader


class FixedNumbers:
    """A decode's numbers at addresses that stay, for recorded work: copied from its source (`begin`) at first use."""

    def __init__(self) -> None:
        self.noise: Noise | None = None
        self.read: set[Address] = set()
        self._buffers: dict[tuple[str, int, str], Tensor] = {}
        self._fresh: set[tuple[str, int, str]] = set()

    def begin(self, noise: Noise) -> Self:
        """Take the numbers of another decode from now on."""
        self.noise = noise
        self._fresh.clear()
        return self

    def fill(self, address: Address) -> Tensor:
        """Return the fixed tensor of an address, holding this decode's numbers. Effects: an entry in the ledger."""
        kind, si, stream, reader = address
        numbers: Tensor = getattr(self.noise, kind)(si, stream, reader)
        key = (kind, si, stream)
        if key not in self._fresh:
            self._buffers.setdefault(key, torch.empty_like(numbers)).copy_(numbers)
            self._fresh.add(key)
        return self._buffers[key]

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        self.read.add(("exponential", si, stream, reader))
        return self.fill(("exponential", si, stream, reader))

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        self.read.add(("uniform", si, stream, reader))
        return self.fill(("uniform", si, stream, reader))

    def labels(self, classes: int) -> Tensor:
        """Return int64 labels_B, where the decode's source keeps them."""
        assert self.noise is not None
        return self.noise.labels(classes)


@dataclass(frozen=True)
class Recorded:
    """One graph: what it returns, the numbers that it reads, and the work itself, which keeps its tensors alive."""

    graph: Any  # has `replay`
    outputs: Any
    read: frozenset[Address]
    compute: Callable[[], Any]


class Workspace(Launcher):
    """The buffers and recorded work of all decodes of B images, of so many guidance rows each; one decode at a time."""

    def __init__(self, models: ModelPair, B: int, new_cache: NewCache, halves: int = 2) -> None:
        super().__init__(models, B, new_cache, halves)
        self.labels_B = torch.empty(B, dtype=torch.int64, device=models.device)
        self.numbers = FixedNumbers()
        self.recorded: dict[Hashable, Recorded] = {}
        # One pool: graphs run one after the other, so their scratch memory can be the same. What one graph returns may
        # therefore lie in the scratch memory of an older one; work that returns something lasting gets a pool alone.
        self._pool: Any = None

    def begin(self, noise: Noise, labels_B: Tensor) -> tuple[Noise, Tensor]:
        """Empty caches and buffers for another decode; return its numbers and labels at fixed addresses."""
        for kv in self.caches.values():
            kv.lengths[:] = [0] * len(kv.lengths)
        self.buffers.clear()
        return self.numbers.begin(noise), self.labels_B.copy_(labels_B)

    def run(self, key: Hashable, compute: Callable[[], T], lasting: bool = False) -> T:
        """Replay the work `key`, recording it at its first use."""
        if key not in self.recorded:
            self.recorded[key] = self._recorded(compute, lasting)
        recorded = self.recorded[key]
        for address in recorded.read:
            self.numbers.fill(address)
        recorded.graph.replay()
        outputs: T = recorded.outputs
        return outputs

    def _recorded(self, compute: Callable[[], T], lasting: bool) -> Recorded:
        """Run the work until nothing new is allocated or drawn, put the buffers back, and record it."""
        self.numbers.read = set()
        before = {name: buffer.clone() for name, buffer in vars(self.buffers).items()}
        graph, outputs = self._record(partial(self._undone, compute, before), compute, lasting)
        return Recorded(graph, outputs, frozenset(self.numbers.read), compute)

    def _undone(self, compute: Callable[[], object], before: dict[str, Tensor]) -> None:
        """Do the work and put the buffers back: such as f_hat += … may be done once only."""
        compute()
        for name, buffer in before.items():
            getattr(self.buffers, name).copy_(buffer)

    def _record(self, once: Callable[[], None], compute: Callable[[], T], lasting: bool) -> tuple[Any, T]:
        """Return the graph of `compute`, and what it returns; `once` does the work and leaves no trace."""
        stream = _side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                once()
        torch.cuda.current_stream().wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle() if lasting else self._pool
        with _no_collection(), torch.cuda.graph(graph, pool=pool):
            outputs = compute()
        return graph, outputs


@cache
def _side_stream() -> torch.cuda.Stream:
    """Return the stream of all warm-ups: the libraries keep tens of MiB for every stream that they have worked on."""
    return torch.cuda.Stream()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold back the garbage collector: a graph that it destroys while another is recorded spoils the recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
