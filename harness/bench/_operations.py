"""Every product and attention of a pass, each on the sequential sampler's own bits.

Promise: the networks run unchanged. A mode of PyTorch's sees what goes into an operation and what comes out, compares
both with what one pass a scale had at the same positions, and puts that in their place: what differs is named where it
arises, and not what follows from it. What has no counterpart, or is not met, counts as different.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.models import Around, Cache, Condition, Network

INPUTS = "inputs"  # of a pass: f_hat, resized and embedded, and positions
BETWEEN = "between"  # kind of what lies between two operations: norms, modulation, GELU, rotations


@dataclass(frozen=True)
class Width:
    """What decides how many rows the kernels of a pass get."""

    batch: int  # images of the decode
    images: int  # of them, those that take the round together
    first: int  # scale of the pass
    last: int
    recorded: bool = False  # as a CUDA graph

    def __str__(self) -> str:
        shared = "" if self.images == self.batch else f", {self.images} of {self.batch} images"
        return f"{self.first}-{self.last}{shared}{', recorded' if self.recorded else ''}"


@dataclass
class Deviation:
    """How far a kind of operation, or a whole pass, is from the sequential sampler's bits, and from float64."""

    operation: str
    width: Width = Width(0, 0, 0, 0)
    differs: dict[str, None] = field(default_factory=dict)  # which operations, or tensors of the whole pass
    difference: float = 0.0  # largest, from the sequential sampler; infinite where there is nothing to compare
    error: float = math.nan  # largest, from float64 on the same inputs; NaN where it is not measured
    squares: float = 0.0  # sum of squared errors
    numbers: int = 0  # so many

    def compare(self, name: str, actual: Tensor, expected: Tensor | None) -> None:
        """Set a result beside the sequential one. Effects: on itself."""
        if expected is None or expected.shape != actual.shape:
            self.differs[name], self.difference = None, math.inf
        elif not torch.equal(actual, expected):
            self.differs[name] = None
            self.difference = max(self.difference, _largest(actual.double() - expected.double()))

    def measure(self, actual: Tensor, exact: Tensor) -> None:
        """Set a result beside float64's. Effects: on itself."""
        off = actual.double() - exact
        self.error = max(_largest(off), 0.0 if math.isnan(self.error) else self.error)
        self.squares, self.numbers = self.squares + float(off.square().sum()), self.numbers + off.numel()

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.numbers) if self.numbers else math.nan


def _largest(off: Tensor) -> float:
    return float(off.abs().nan_to_num(math.inf, math.inf).max())  # Python's `max` would lose a NaN


class OperationWatch(TorchFunctionMode):
    """Records the operations of one pass a scale, and afterwards compares those of other passes with them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._weights = {weight.data_ptr(): name.removesuffix(".weight") for name, weight in network.weights.items()}
        self._recorded: dict[str, list[list[Tensor]]] = defaultdict(list)  # by name, pass and call
        self._sequential: dict[str, Tensor] | None = None  # None while they are recorded

    def finish(self, texts: list[int]) -> None:
        """Hold other passes to what was recorded, of guidance rows with texts of these lengths."""
        self._texts, self._sequential = texts, {}
        while self._recorded:
            name, passes = self._recorded.popitem()
            # an attention may be several calls: of rows whose texts are as long, or of queries in blocks
            scales = [torch.cat(calls, 2 if len(calls[0]) == len(texts) else 0) for calls in passes]
            packed = scales[0].dim() == 2  # texts, the same in every pass
            self._sequential[name] = scales[0] if packed else torch.cat(scales, scales[0].dim() - 2)

    def begin(self, x_RnD: Tensor, cache: Any) -> None:
        """Begin a pass: its cache says of which rows, and after how many positions. Effects: as `_see`, on inputs."""
        self._names, self._kept, self._done, self._met = dict(self._weights), list[Tensor](), 0, set[str]()
        self._found = dict[str, Deviation]()
        if self._sequential is not None:
            every = range(len(self._texts))
            self._begin, self._rows = cache.start, list(every) if cache.rows_R is None else cache.rows_R.tolist()
        self._see(INPUTS, x_RnD)

    def end(self) -> list[Deviation]:
        """Return what the last pass was, a kind of operation each."""
        for name in (self._sequential or {}).keys() - self._met:
            self._of(name).compare(name, torch.empty(0), None)
        return list(self._found.values())

    def _of(self, name: str) -> Deviation:
        """Return what is known of an operation's kind: ``ffn.fc1`` of ``blocks.3.ffn.fc1``."""
        kind = BETWEEN if name.startswith("before ") else re.sub(r"^.*\.\d+\.(?=.*\.)", "", name)
        return self._found.setdefault(kind, Deviation(kind))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, attends = kwargs or {}, func is F.scaled_dot_product_attention
        if not attends and func is not F.linear:
            out = func(*args, **kwargs)
            if func is Tensor.to and (known := self._names.get(args[0].data_ptr())):
                self._names[out.data_ptr()] = known
                self._kept.append(out)  # so that nothing else gets its address
            return out
        if not attends:
            self._product, self._done = self._names.get(args[1].data_ptr(), "unknown"), 0
        name = f"{self._product.rpartition('.')[0]}.attention" if attends else self._product
        self._see(f"before {name}", args[0])
        out = func(*args, **kwargs)
        wide = [arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
        self._see(name, out, lambda: func(*wide, **kwargs))
        if attends and self._sequential is not None:
            self._done += out.shape[2] if len(out) == len(self._rows) else len(out)
        return out

    def _see(self, name: str, actual: Tensor, exact: Callable[[], Tensor] | None = None) -> None:
        """Record, or compare and put right. Effects: on `actual`, which gets the sequential sampler's numbers."""
        if self._sequential is None:
            self._recorded[name] += [] if name in self._met else [[]]
            self._recorded[name][-1].append(actual)
            self._met.add(name)
            return
        self._met.add(name)
        found, expected = self._of(name), self._expected(self._sequential.get(name), actual)
        found.compare(name, actual, expected)
        if exact is not None:
            found.measure(actual, exact())
        if expected is not None and expected.shape == actual.shape:
            actual.copy_(expected)

    def _expected(self, whole: Tensor | None, actual: Tensor) -> Tensor | None:
        """Return the sequential sampler's numbers at the rows and positions of a call; None where there are none."""
        if whole is None or whole.dim() != actual.dim():
            return None
        if whole.dim() == 2:
            texts = whole.split(self._texts)
            return torch.cat([texts[row] for row in self._rows])
        is_part = len(actual) < len(self._rows)  # the others follow in calls of their own
        rows = self._rows[self._done :][: len(actual)] if is_part else self._rows
        axis, first = whole.dim() - 2, self._begin + (0 if is_part else self._done)
        length = min(actual.shape[axis], whole.shape[axis] - first)
        return whole.narrow(axis, first, length)[rows] if length > 0 else None


@dataclass(frozen=True, eq=False)
class SeenNetwork(Around):
    """A network whose operations are seen."""

    watch: OperationWatch

    def hidden(self, x_RnD: Tensor, condition: Condition, cache: Cache, *where: Tensor | None) -> Tensor:
        self.watch.begin(x_RnD, cache)
        with self.watch:
            return self.network.hidden(x_RnD, condition, cache, *where)

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        with self.watch:
            return self.network.logits(h_RnD, condition)
