"""The memory through which a decoder's process hands its tensors over: by value, and nothing else.

Promise: the judge's side reads bytes, a list of names, dtypes and shapes, and believes none of it unchecked: no object
of the other process is ever built here, what is judged is a copy that the other side can no longer reach, and the block
keeps its size.

How: one block of shared memory, made by the judge; on a CPU an anonymous file that both map, on CUDA an allocation that
the other process opens by its handle.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from harness.errors import shown
from harness.judge import TRACE_DTYPES, expected_tensors
from harness.models import ModelPair
from harness.processes import UnreadableError, sized
from harness.protocol import Request

ALIGNED = 64  # bytes; a view of another dtype needs its own alignment
WIDEST = 8  # bytes of a number: a decoder may show its tensors in a wider dtype than the networks'
DTYPES = {str(dtype).removeprefix("torch."): dtype for kind in TRACE_DTYPES.values() for dtype in kind}
Header = list[tuple[str, str, list[int]]]  # name, dtype, shape
Handle = tuple[Any, ...]  # descriptor and size, or what PyTorch rebuilds a CUDA tensor from


def capacity(models: ModelPair, B: int) -> int:
    """Return the bytes that the tensors of a whole trace of B images may fill, each number of the widest dtype."""
    expected = expected_tensors(models, Request((0,) * B)).values()
    return sum(_next(math.prod(tensor.shape) * WIDEST) for tensor in expected)


@dataclass(frozen=True)
class Mailbox:
    """One block of shared memory."""

    block: Tensor  # its bytes
    handle: Handle  # what the other process opens it by; picklable
    descriptor: int = -1  # of the anonymous file, which that process must get; -1 on CUDA

    @classmethod
    def make(cls, size: int, device: torch.device) -> Self:
        """Allocate `size` bytes. Effects: an open file on a CPU, closed by `close`."""
        if device.type == "cuda":
            block = torch.empty(size, dtype=torch.uint8, device=device)
            return cls(block, reduce_tensor(block)[1])
        descriptor = sized(size)
        return cls(_mapped(descriptor, size), (descriptor, size), descriptor)

    @classmethod
    def open(cls, handle: Handle, descriptor: int = -1) -> Self:
        """Open another process's memory; on a CPU by the `descriptor` under which this one has it, if it is another."""
        if len(handle) == 2:
            mine = handle[0] if descriptor < 0 else descriptor
            return cls(_mapped(mine, handle[1]), handle, mine)
        return cls(rebuild_cuda_tensor(*handle), handle)

    def close(self) -> None:
        """Close the file; the memory lives until both sides have let go."""
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def put(self, tensors: Mapping[str, Tensor]) -> Header:
        """Copy tensors in, one after the other; return what `take` needs. Raises `UnreadableError`."""
        header: Header = []
        begin = 0
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.itemsize
            if begin + size > len(self.block):
                raise UnreadableError(f"the trace's tensors need more than {len(self.block)} bytes")
            target = self.block[begin : begin + size].view(tensor.dtype).view(tensor.shape)
            target.copy_(tensor)
            header.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)))
            begin = _next(begin + size)
        if self.block.is_cuda:
            torch.cuda.synchronize(self.block.device)
        return header

    def take(self, header: object) -> dict[str, Tensor]:
        """Return copies of what lies here. Raises `UnreadableError` for another header, or one beyond the block."""
        tensors: dict[str, Tensor] = {}
        begin = 0
        for name, dtype, shape in _checked(header):
            size = math.prod(shape) * dtype.itemsize
            if begin + size > len(self.block):
                raise UnreadableError(f"{name} of shape {shape} lies beyond the mailbox")
            tensors[name] = self.block[begin : begin + size].view(dtype).view(shape).clone()
            begin = _next(begin + size)
        return tensors


def _checked(header: object) -> list[tuple[str, torch.dtype, list[int]]]:
    if not isinstance(header, list):
        raise UnreadableError("the list of tensors is missing")
    checked = []
    for item in header:
        if not (isinstance(item, list | tuple) and len(item) == 3):
            raise UnreadableError("a tensor is not described by name, dtype and shape")
        name, dtype, shape = item
        good = isinstance(name, str) and isinstance(dtype, str) and dtype in DTYPES and isinstance(shape, list)
        if not good or not all(type(side) is int and 0 <= side < 2**40 for side in shape):
            raise UnreadableError(f"a tensor is described as {shown(item)[:100]}")
        checked.append((name, DTYPES[dtype], shape))
    return checked


def _next(begin: int) -> int:
    return -(-begin // ALIGNED) * ALIGNED


def _mapped(descriptor: int, size: int) -> Tensor:
    return torch.from_file(f"/dev/fd/{descriptor}", shared=True, size=size, dtype=torch.uint8)
