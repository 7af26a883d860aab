"""What a judge and the process of a decoder say to each other: pickles there, JSON back, tensors in a mailbox.

Promise: what the judge reads of a line is a `DecoderReply` of known types, or `UnreadableError`: no object of the other
process is ever built here, and a text has a bounded length. Of the mailbox it reads bytes, a list of names, dtypes and
shapes, and believes none of it unchecked; what is judged is a copy that the other side can no longer reach, and the
block keeps its size.

How: the mailbox is one block of shared memory, made by the judge; on a CPU an anonymous file that both map, on CUDA an
allocation that the other process opens by its handle.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from harness.decoders._crash import MOST_TRACEBACK
from harness.decoders._factory import Built, Limits, Surroundings
from harness.errors import InputError, shown
from harness.judge import TRACE_DTYPES, CodeLine, Divergence, PartLaw, expected_tensors
from harness.models import ModelPair
from harness.processes import UnreadableError, sized
from harness.protocol import DECLINES, Intermediates, Request, Round, Settings, Trace
from harness.rounding import Budget
from harness.schema import record_of

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
            self.block[begin : begin + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
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


TENSORS = ("tokens_BL", "f_hat_BCPP", "scale_writes_BS", "law_BLV", "skipped_BSN")
SHOWN = "intermediates."
MOST_TEXT = 1000  # characters of a clause
MOST_REMARKS = 20  # of a decode


@dataclass(frozen=True)
class DecoderJob:
    """What the process is started with; pickled by the judge's side, which trusts itself."""

    factory: str | bytes  # name of the factory, or the factory itself as cloudpickle's bytes
    models: ModelPair  # copies of the networks
    settings: list[Settings]  # a decoder is built for each
    mailbox: Handle  # handle of the shared memory
    surroundings: Surroundings  # those of the judge's side
    limits: Limits  # of the process


@dataclass(frozen=True)
class DecoderQuestion:
    """What the process is asked: a decode, or what its decoder's parts are; pickled as the job is."""

    setting: int  # index of the decoder
    request: Request  # what is drawn
    timeout_s: float  # seconds that it may take
    budget: Budget | None = None  # how far rounding moves the networks; asks the parts. None = a decode is wanted
    times: int = 1  # decodes; the first counts, the others are there to be timed
    greedy: bool | None = None  # rule of the oracle; asks for the line that goes wrong. None = a decode is wanted


@dataclass(frozen=True)
class DecoderReply:
    built: Built = field(default_factory=Built)  # what building the decoders showed
    refused: InputError | None = None  # the refusal of the settings, or of a request
    parts: list[PartLaw] = field(default_factory=list)  # what the laws of the parts found
    code_line: CodeLine | str = ""  # that goes wrong, or why there is none
    defects: list[Divergence] = field(default_factory=list)  # why a decode did not end well
    so_far: str = ""  # how far that decode came
    ending: str = ""  # its traceback, where it raised
    remarks: list[str] = field(default_factory=list)  # what it left behind in its process
    tensors: Header | None = None  # what lies in the mailbox; None = no trace
    trace: Mapping[str, object] = field(default_factory=dict)  # the rest of the trace as JSON values

    @classmethod
    def with_trace(cls, trace: Trace, mailbox: Mailbox) -> Self:
        """Put a trace's tensors into the mailbox; return what the judge's side makes a trace of, or why it cannot."""
        tensors = {name: tensor for name in TENSORS if (tensor := getattr(trace, name)) is not None}
        if trace.intermediates is not None:
            tensors |= {f"{SHOWN}{name}": tensor for name, tensor in trace.intermediates.named().items()}
        values = {name: value for name, value in vars(trace).items() if name not in (*TENSORS, "intermediates")}
        try:
            values["rounds"] = [[asdict(turn) for turn in rounds] for rounds in trace.rounds]
            json.dumps(values, allow_nan=False)
            return cls(tensors=mailbox.put(tensors), trace=values)
        except (UnreadableError, TypeError, ValueError) as error:
            detail = f"the trace cannot leave the decoder's process ({error})"
            return cls(defects=[Divergence("process", detail, 0)])

    def line(self) -> bytes:
        words = self.refused and (self.refused.name, self.refused.value, self.refused.rule, self.refused.remedy)
        defects = [(defect.component, defect.detail, defect.image, defect.scale) for defect in self.defects]
        rest = {
            "built": vars(self.built),
            "refused": words and list(map(str, words)),
            "defects": defects,
            "code_line": vars(self.code_line) if isinstance(self.code_line, CodeLine) else self.code_line,
            "parts": [list(asdict(row).values()) for row in self.parts],
        }
        return json.dumps(vars(self) | rest).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes, seed: int = 0) -> Self:
        """Read what `line` made, or somebody forged; `seed` is that of the request. Raises `UnreadableError`."""
        try:
            told = json.loads(line)
            values = _cut(told)
            refused = values["refused"]
            built = record_of(Built, values["built"])
            declines = [[word for word in words if word in DECLINES] for words in built.declines]
            names = ("component", "detail", "image", "scale")
            defects = [
                record_of(Divergence, {**dict(zip(names, each, strict=True)), "seed": seed})
                for each in values["defects"]
            ]
            read = {
                "built": replace(built, declines=declines),
                "refused": None if refused is None else InputError(*map(str, refused)),
                "defects": defects,
                "ending": str(told.get("ending", ""))[:MOST_TRACEBACK],
                "remarks": values["remarks"][:MOST_REMARKS],
                "tensors": None,
            }
            return replace(record_of(cls, {**values, **read}), tensors=told["tensors"])  # `Mailbox.take` checks it
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableError(f"the decoder's process answers with another form ({type(error).__name__})") from None

    def read_trace(self, mailbox: Mailbox) -> Trace:
        """Build the trace of copies; its form is the judge's to check. Raises `UnreadableError`: it cannot be built."""
        tensors = mailbox.take(self.tensors)
        try:
            shown = {f.name: tensors[SHOWN + f.name] for f in fields(Intermediates) if SHOWN + f.name in tensors}
            rounds = [[Round(**turn) for turn in turns] for turns in self.trace["rounds"]]  # type: ignore[attr-defined]
            values = {**self.trace, **{name: tensors[name] for name in TENSORS if name in tensors}, "rounds": rounds}
            trace = Trace(**values, intermediates=Intermediates(**shown) if shown else None)  # type: ignore[arg-type]
            trace.scale_writes_BS = trace.scale_writes_BS.cpu()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnreadableError(f"the decoder's process answers with another form ({error})") from None
        return trace


def _cut(value: Any) -> Any:
    """Return JSON values with every text at a bounded length."""
    if isinstance(value, str):
        return value[:MOST_TEXT]
    if isinstance(value, dict):
        return {key: _cut(each) for key, each in value.items()}
    return [_cut(each) for each in value] if isinstance(value, list) else value
