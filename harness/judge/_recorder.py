"""Every operation of a decode, with the decoder's own frames that called it, and what tells its tensors apart.

Promise: of a tensor rows are remembered, never the tensor, but of drawn tokens: of every row a hash of its bits, by
which it is followed through copies, slices, caches and lists of any kind, and, of real numbers, three projections and
its length, by which it is known for right within rounding, whatever the layout of windows, batches and halves.

Why not `torch.utils._debug_mode`: it keeps hashes of whole tensors, and a window of several scales has none that the
reference has, not even within rounding.
"""

import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from traceback import walk_stack
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = Path(__file__).parents[1]
TESTED = tuple(f"{PACKAGE / room}{os.sep}" for room in ("speculative", "mutants"))  # decoders within the harness
OTHERS = (f"{PACKAGE}{os.sep}", f"{Path(torch.__file__).parent}{os.sep}", "<")
LIBRARY, INSTALLED = f"{sysconfig.get_path('stdlib')}{os.sep}", "site-packages"
REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LEAST = 8  # numbers of a row, where the tensor has them
LONGEST = 2**17  # numbers of a row that is remembered
MOST_NUMBERS = 2**22  # that are looked at at a time
MOST_ROWS = 2**26  # of a recording; some 3 GB
MOST_STACK = 16
FILLS = {"copy_", "exponential_", "fill_", "normal_", "random_", "uniform_", "zero_"}  # what was there is not read
Result = TypeVar("Result")
ROUNDS = {"to", "copy_"}  # where what comes out has fewer bits
MOVES = {"cat", "stack", "clone", "contiguous", "expand", "repeat", *ROUNDS}
TAKEN_IN = "torch.tensor"  # Python's or NumPy's numbers
PUBLIC = {"lift_fresh": TAKEN_IN, "_to_copy": "to", "_unsafe_view": "view", "alias": "slice"}  # as a decoder calls it
BY_ROW = ("linear", "addmm", "norm", "softmax", "argmax", "where", "masked_fill", "sort", "cumsum", "gather", "scatter")


class Frame(NamedTuple):
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}, in {self.function}: {self.text}"

    @property
    def text(self) -> str:
        return linecache.getline(self.file, self.line).strip()


class TensorRows(NamedTuple):
    """What is remembered of a tensor."""

    kind: tuple[str, int]  # real, whole, mask (zeros and -inf) or truth; numbers of a row
    hash_N: Tensor
    mark_N4: Tensor  # zeros of what is not real
    storage: int = 0  # where it lay


class Operation(NamedTuple):
    name: str
    stack: tuple[Frame, ...]  # the decoder's own frames, the innermost first
    inputs: list[TensorRows]
    outputs: list[TensorRows]
    moves: bool  # what comes out went in
    read: list[tuple[int, ...]]  # shapes of what went in
    made: list[tuple[int, ...]]  # and of what came out
    whole: list[Tensor]  # of both, whole numbers in one row
    given: tuple[Any, ...] = ()  # what was seen of the variables of every frame
    by_row: bool = False  # a row that came out was made of the row in its place alone, where as many went in
    drawn: Tensor | None = None  # whole numbers made of real ones or of their order, and all of those it wrote among
    over: Sequence[TensorRows] = ()  # what was where it wrote, of as many tensors as came out

    def __str__(self) -> str:
        return " ".join(map(str, (self.name, *self.read, "->", *self.made)))

    @property
    def rounds(self) -> bool:
        """Whether what comes out is what went in, in fewer bits."""
        return self.name in ROUNDS and not self.moves

    @property
    def attends(self) -> bool:
        """Whether it is an attention, whose second input are keys."""
        return "attention" in self.name


class EveryOperation(TorchDispatchMode):
    supports_higher_order_operators = True  # each is one operation

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # its import takes seconds, and nothing is compiled here


class OperationRecorder(EveryOperation):
    """Remembers every operation; of the storage of `weights` nothing. Raises `MemoryError` where there are too many."""

    def __init__(self, weights: Iterable[Tensor], look: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        super().__init__()
        self._look = look  # at the variables of the decoder's own frames
        self.steps: list[Operation] = []
        self._weights, self._rows = {_storage(each) for each in weights}, 0
        self._drawn: dict[int, Tensor] = {}  # by storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(computes_itself, types)):
            return NotImplemented  # what it computes with is recorded
        kwargs, name = kwargs or {}, str(getattr(func, "_opname", func))
        if name == "detach_":  # changes no number; `torch.tensor` ends with it in inference mode
            return func(*args, **kwargs)
        name = PUBLIC.get(name, name)
        with torch._C.DisableTorchFunction():  # a subclass, or a default device, is the decoder's own
            written, filled = written_by(func, args, kwargs)
            filled = written if name in FILLS else filled
            came_in = () if name == TAKEN_IN else tensors_in((args, kwargs))
            read = [each for each in came_in if not any(each is other for other in filled)]
            inputs, over = self._rows_of(read), self._rows_of(written)
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            made = written or list(tensors_in(result))
            if "empty" in name:  # what is left there is nobody's value, or a right one of a decode before
                for each in made:
                    each.zero_()
            is_view = not written and not {_storage(each) for each in read}.isdisjoint(map(_storage, made))
            outputs = [] if "empty" in name else self._rows_of(made)
            both = (*read, *made)
            small = [each for each in both if each.dtype is torch.int64 and each.numel() < 2**16]
            whole = [each.flatten().cpu().clone() for each in small]
            drawn = self._drawn_by(name, inputs, made, small)
            sizes = [each.element_size() for each in (*read[:1], *made[:1]) if each.dtype in REAL]
            rounds = name in ROUNDS and sizes[1:] < sizes[:1]
        went_in, came_out = ([tuple(each.shape) for each in of] for of in (read, made))
        # whole numbers lead back to where they come from; real ones that the reference has not may be right
        moves = is_view or (name in MOVES and not rounds) or (name == TAKEN_IN and made[0].is_floating_point())
        frames = own_frames()
        stack = tuple(each for _, each in frames)
        given = tuple(self._look(frame.f_locals) for frame, _ in frames) if self._look is not None else ()
        by_row = torch.Tag.pointwise in getattr(func, "tags", ()) or any(word in name for word in BY_ROW)
        rows, over = (inputs, outputs, moves, went_in, came_out), over if len(over) == len(outputs) else []
        self.steps.append(Operation(name, stack, *rows, whole, given, by_row, drawn, over))
        return result

    def _drawn_by(self, name: str, inputs: list[TensorRows], made: list[Tensor], whole: list[Tensor]) -> Tensor | None:
        """Return the drawn numbers that an operation makes, or writes among."""
        if not whole or not made or whole[-1] is not made[-1] or not made[-1].dim() or not made[-1].numel():
            return None
        is_of_real = len(whole) == 1 and any(rows.kind[0] == "real" for rows in inputs)
        is_of_real &= not (name.startswith("new_") or name.endswith("_like"))  # which reads but a shape
        if is_of_real or (name == "gather" and len(whole) == 3):
            self._drawn[_storage(made[-1])] = made[-1]
        elif not name.endswith("_"):
            return None
        drawn = self._drawn.get(_storage(made[-1]))
        self._rows += 0 if drawn is None else drawn.numel()
        return None if drawn is None else drawn.cpu().clone()

    def _rows_of(self, tensors: list[Tensor]) -> list[TensorRows]:
        every = [rows for each in tensors if _storage(each) not in self._weights and (rows := rows_of(each))]
        self._rows += sum(len(rows.hash_N) for rows in every)
        if self._rows > MOST_ROWS:
            raise MemoryError("the decode has too many operations to be recorded")
        return every


def own_frames() -> list[tuple[FrameType, Frame]]:
    """Return the decoder's own frames that called an operation: not torch's, the harness's or Python's, nor a caller's.

    A decoder calls libraries: where it lies in none, or in another one, theirs are not its own.
    """
    inside = takewhile(lambda each: each[0].f_code is not recorded.__code__, walk_stack(sys._getframe(1)))
    every = ((frame, Frame(frame.f_code.co_filename, line, frame.f_code.co_name)) for frame, line in inside)
    frames = [(frame, each) for frame, each in every if _is_own(each.file)]
    package = _package(frames[-1][1].file) if frames else ""
    return list(islice((pair for pair in frames if _package(pair[1].file) in ("", package)), MOST_STACK))


def recorded(mode: TorchDispatchMode, work: Callable[[], Result]) -> Result:
    """Return what is computed under a mode; below this frame all of a stack is a caller's."""
    with mode:
        return work()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@cache
def _is_own(file: str) -> bool:
    in_library = file.startswith(LIBRARY) and "site-packages" not in file
    return file.startswith(TESTED) or not (file.startswith(OTHERS) or in_library)


@cache
def _package(file: str) -> str:
    """Return the top of the installed package that a file lies in; empty where it lies in none."""
    return file.rpartition(f"{os.sep}{INSTALLED}{os.sep}")[2].partition(os.sep)[0] if INSTALLED in file else ""


def computes_itself(kind: Any) -> bool:
    return kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def written_by(func: Any, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors that an operation writes into, and those of them that it does not read."""
    arguments = func._schema.arguments if hasattr(func, "_schema") else ()
    named = dict(zip((each.name for each in arguments), args, strict=False)) | kwargs
    of = [[each for each in arguments if each.is_write], [each for each in arguments if each.is_out]]
    written, filled = (list(tensors_in([named.get(each.name) for each in some])) for some in of)
    return written, filled


def tensors_in(values: Any) -> Iterator[Tensor]:
    """List the tensors whose numbers can be read."""
    if isinstance(values, Tensor):
        is_plain = values.layout is torch.strided and not (values.is_quantized or values.is_nested)
        if is_plain and values.device.type != "meta" and not computes_itself(type(values)):
            yield values
    elif isinstance(values, dict | list | tuple):
        for each in values.values() if isinstance(values, dict) else values:
            yield from tensors_in(each)


@cache
def _factors(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what rows are multiplied by: whole numbers for a hash, real ones for projections."""
    generator = torch.Generator().manual_seed(33)
    whole = torch.randint(-(2**62), 2**62, (LONGEST,), generator=generator) | 1
    return whole.to(device), torch.randn(LONGEST, 3, generator=generator, dtype=torch.float64).to(device)


def in_rows(tensor: Tensor) -> tuple[tuple[str, int], Tensor] | None:
    """Return the kind of a tensor's rows, and these as rows_NL; None where nothing of it is remembered."""
    is_truth, is_real, axis = tensor.dtype is torch.bool, tensor.dtype in REAL, tensor.dim() - 1
    if tensor.is_complex() or not tensor.numel() or tensor.is_floating_point() > is_real:
        return None
    kind = "truth" if is_truth else "mask" if _is_mask(tensor) else "real" if is_real else "whole"
    least = tensor.shape[-2:].numel() if kind in ("mask", "truth") else LEAST
    while axis > 0 and tensor.shape[axis:].numel() < least:
        axis -= 1
    length = tensor.shape[max(axis, 0) :].numel()
    return None if length > LONGEST else ((kind, length), tensor.reshape(-1, length))


def rows_of(tensor: Tensor) -> TensorRows | None:
    """Return what is remembered of a tensor; None where that is nothing."""
    if (rows := in_rows(tensor)) is None:
        return None
    (kind, length), rows_NL = rows
    (_, real), hashes, marks = _factors(tensor.device), [], []
    for piece in rows_NL.split(max(1, MOST_NUMBERS // length)):
        hashes.append(hash_of(piece).cpu())
        marks.append(torch.zeros(len(piece), 4, dtype=torch.promote_types(piece.dtype, torch.float32)))
        if kind == "real":  # products of fewer bits than float64 may be those of autocast or TF32
            plain = piece.double().nan_to_num(77.0, 99.0, -99.0)
            marks[-1][:] = torch.cat((plain @ real[:length], plain.norm(dim=-1, keepdim=True)), 1)
    return TensorRows((kind, length), torch.cat(hashes), torch.cat(marks), _storage(tensor))


def hash_of(rows_NL: Tensor) -> Tensor:
    """Return hash_N of the bits of every row."""
    widths = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    is_real = rows_NL.is_floating_point()
    bits_NL = rows_NL.contiguous().view(widths[rows_NL.element_size()]) if is_real else rows_NL
    return (bits_NL.long() * _factors(rows_NL.device)[0][: rows_NL.shape[1]]).sum(-1)


def _is_mask(tensor: Tensor) -> bool:
    if tensor.dim() < 2 or not tensor.is_floating_point() or float(tensor.flatten()[0]) not in (0.0, -torch.inf):
        return False
    hidden = tensor.isneginf()
    return bool(hidden.any()) and bool((hidden | (tensor == 0)).all())


class Known:
    """TensorRows that are right; `close` is how far rounding may move one, relative to its length."""

    def __init__(self, rows: Iterable[TensorRows], close: float) -> None:
        by_kind: dict[tuple[str, int], list[TensorRows]] = {}
        for each in rows:
            by_kind.setdefault(each.kind, []).append(each)
        self._hashes = {kind: torch.cat([each.hash_N for each in of]) for kind, of in by_kind.items()}
        marks = {kind: torch.cat([each.mark_N4.double() for each in of]) for kind, of in by_kind.items()}
        self._marks = {kind: mark_N4[mark_N4[:, 0].argsort()] for kind, mark_N4 in marks.items()}
        self._close = close

    def has(self, rows: TensorRows) -> Tensor:
        """Tell of every row whether it is right; zeros alone are nobody's mistake."""
        is_real = rows.kind[0] == "real"
        known_N = (rows.mark_N4[:, 3] == 0) & is_real
        if rows.kind not in self._hashes:
            return known_N
        known_N |= torch.isin(rows.hash_N, self._hashes[rows.kind])
        if not is_real:
            return known_N
        right, asked = self._marks[rows.kind], rows.mark_N4.double()
        error_N, sorted_M = self._close * asked[:, 3] + 1e-12, right[:, 0].contiguous()
        at_N = torch.searchsorted(sorted_M, asked[:, 0] - error_N)
        end_N = torch.searchsorted(sorted_M, asked[:, 0] + error_N, right=True)
        open_n = torch.nonzero(~known_N & (at_N < end_N)).flatten()
        while len(open_n):
            near_n = ((right[at_N[open_n]] - asked[open_n]).abs() <= error_N[open_n, None]).all(1)
            known_N[open_n[near_n]] = True
            at_N[open_n] += 1
            open_n = open_n[~near_n & (at_N[open_n] < end_N[open_n])]
        return known_N

    def nonzero(self, rows: TensorRows) -> list[int]:
        """List the places of rows that are right, and not zeros."""
        is_right_N = self.has(rows) & (rows.mark_N4[:, 3] > 0)
        return is_right_N.nonzero().flatten().tolist()
