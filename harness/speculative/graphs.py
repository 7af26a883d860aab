"""CUDA graphs: a forward pass over fixed scales is recorded once and replayed afterwards.

Promise: the same kernels on the same numbers, with the launches saved. A graph knows addresses, not tensors, so the
buffers that a pass reads and writes live in a workspace that outlives the decodes of one batch size. What a replay
returns is overwritten when the same graph is replayed again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from harness.models.pair import ModelPair
from harness.models.transformer import Condition, Transformer
from harness.speculative.cache import KVCache

Compute = Callable[[], tuple[Tensor, Tensor]]
WARM_UPS = 2  # runs before recording: library handles and workspaces are made outside the graph


class Graphs:
    """The recorded passes of one network at one batch size, and the buffers that they share.

    Args:
        network: whose passes are recorded.
        cache: reused by every decode of this batch size.
    """

    def __init__(self, network: Transformer, cache: KVCache) -> None:
        B = len(cache.lengths)
        self.cache = cache
        # one pool: passes run one after the other, so their scratch memory can be the same
        self.pool = torch.cuda.graph_pool_handle()
        self.condition = network.condition(torch.zeros(2 * B, dtype=torch.int64, device=network.device))
        self.recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], Compute]] = {}

    def begin(self, condition: Condition) -> Condition:
        """Start a decode: empty the cache, copy the labels' vectors into the fixed buffers, and return those."""
        self.cache.lengths[:] = [0] * len(self.cache.lengths)
        self.condition.copy_(condition)
        return self.condition

    def run(self, key: Hashable, compute: Compute) -> tuple[Tensor, Tensor]:
        """Replay the pass `key`, recording it at its first use.

        Args:
            key: the scales of the pass; equal keys must mean equal work on equal buffers.
            compute: the pass itself, without a host synchronisation; kept, and with it every tensor that it reads.
        """
        if key not in self.recorded:
            self.recorded[key] = self._record(compute)
        graph, outputs, _ = self.recorded[key]
        graph.replay()
        return outputs

    def _record(self, compute: Compute) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], Compute]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = compute()
        return graph, outputs, compute


class Workspace:
    """The buffers of all decodes of one batch size; one decode at a time.

    Args:
        models: whose passes are recorded.
        B: images.
        new_cache: makes a KV cache for a network and a batch size.
    """

    def __init__(self, models: ModelPair, B: int, new_cache: Callable[[Transformer, int], KVCache]) -> None:
        config, L = models.target.config, models.pyramid.L
        self.graphs = {
            "draft": Graphs(models.draft, new_cache(models.draft, B)),
            "target": Graphs(models.target, new_cache(models.target, B)),
        }
        self.raw_BLC = torch.zeros(B, L, config.C, device=models.device, dtype=models.vae.dtype)
