"""What may make a device inexact or a repeat differ: switched off unless asked for, and stated in every result.

Promise: after `set_precision(False)` float32 means float32 on every device, and a repeat gives the same bits; and a
decoder that changes one of these settings is told by name, and changes it for itself alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

# What the results state, and what else decides how a product rounds; dotted names below `torch.backends`. The first is
# PyTorch's newer switch over all of them (2.9 on): where one is set by both, PyTorch refuses to tell the older one.
STATED = {
    "tf32_matmul": "cuda.matmul.allow_tf32",
    "tf32_convolution": "cudnn.allow_tf32",
    "deterministic_convolution": "cudnn.deterministic",
}
NEWEST = "fp32_precision"
WATCHED = {
    NEWEST: NEWEST,
    **STATED,
    "benchmark_convolution": "cudnn.benchmark",
    "reduced_bfloat16_sums": "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cpu_matmul": "mkldnn.matmul.fp32_precision",
    "cpu_convolution": "mkldnn.conv.fp32_precision",
    "reduced_float16_sums": "cuda.matmul.allow_fp16_reduced_precision_reduction",
}
MATMUL = "float32_matmul_precision"  # a function's, over those of CUDA and CPU
UNREADABLE = "set by two interfaces at once"


def set_precision(tf32: bool) -> dict[str, bool]:
    """Switch TF32 on or off, non-deterministic convolution kernels off.

    Args:
        tf32: allow CUDA to round the operands of float32 products to 10 bits of mantissa.

    Returns:
        What is on and off; see `precision`.

    Effects: process-wide PyTorch settings; PyTorch itself allows TF32 in convolutions by default.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return precision()


def precision() -> dict[str, bool]:
    """Return the process-wide settings that decide how exact and how repeatable a run is."""
    return {name: bool(_read(path)) for name, path in STATED.items()}


@contextmanager
def exact_products(exact: bool) -> Iterator[None]:
    """Compute float32 products on CUDA exactly, or with operands rounded to TF32; convolutions exactly in any case.

    Effects: process-wide PyTorch settings, put back when it ends.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = not exact, False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def watched() -> dict[str, object]:
    """Return every process-wide setting that may move a rounded number, those of `precision` among them."""
    found = {name: _read(path) for name, path in WATCHED.items()}
    try:
        found[MATMUL] = torch.get_float32_matmul_precision()
    except RuntimeError:
        found[MATMUL] = UNREADABLE
    return found


@contextmanager
def unchanged() -> Iterator[list[str]]:
    """Run somebody else's code; what it changed is undone, and listed when it ends, one clause a setting."""
    before, changed = watched(), list[str]()
    try:
        yield changed
    finally:
        changed += _put_back(before)


def _put_back(before: Mapping[str, object]) -> list[str]:
    """Set what is not as `before` says, and return a clause on each."""
    now = watched()
    changed = [f"{name} from {before[name]} to {now[name]}" for name in before if now[name] != before[name]]
    if changed:
        readable = {name: value for name, value in before.items() if value not in (None, UNREADABLE)}
        # the first one sets all the others, and the second those of products
        if now[NEWEST] != before[NEWEST]:
            _write(WATCHED[NEWEST], before[NEWEST])
        if MATMUL in readable:
            torch.set_float32_matmul_precision(str(before[MATMUL]))
        for name in readable.keys() - {NEWEST, MATMUL}:
            _write(WATCHED[name], before[name])
    return changed


def _read(path: str) -> object:
    owner, name = _owner(path)
    try:
        return getattr(owner, name, None)  # None: this version of PyTorch has no such switch
    except RuntimeError:
        return UNREADABLE


def _write(path: str, value: object) -> None:
    owner, name = _owner(path)
    setattr(owner, name, value)


def _owner(path: str) -> tuple[object, str]:
    *folders, name = path.split(".")
    owner: object = torch.backends
    for folder in folders:
        owner = getattr(owner, folder, None)
    return owner, name
