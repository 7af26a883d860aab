"""In which mode a network computes: the dtype of its weights, and whether it does so inside torch.autocast.

Promise: a mode has one name, on the command line, in files and in laws; `in_its_mode`, around every function that has
weights to multiply with, is the one place where autocast is entered.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from harness.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

AUTOCAST = "autocast-"  # begins the names of modes inside torch.autocast
# The dtype of the weights, and that of torch.autocast: float32 weights, whose products are computed in fewer bits.
MODES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    **{name: (getattr(torch, name), None) for name in ("float64", "float32", "bfloat16", "float16")},
    **{AUTOCAST + name: (torch.float32, getattr(torch, name)) for name in ("bfloat16", "float16")},
}


def parse_mode(name: str, word: str) -> tuple[torch.dtype, torch.dtype | None]:
    """Return what the value of an option stands for. Raises `InputError` for a word that is none of `MODES`."""
    if word not in MODES:
        raise InputError(name, word, f"must be one of {', '.join(MODES)}", f"pass --{name.replace('_', '-')} float32")
    return MODES[word]


def autocast_of(network: Any) -> torch.dtype | None:
    """Return the dtype of the autocast that a network computes in; None where it computes outside."""
    dtype: torch.dtype | None = getattr(network, "autocast", None)
    return dtype


def mode_name(network: Any) -> str:
    """Return the name of a network's mode, one of `MODES`."""
    dtype = autocast_of(network)
    return ("" if dtype is None else AUTOCAST) + str(dtype or network.dtype).removeprefix("torch.")


def product_dtype(network: Any) -> torch.dtype:
    """Return the dtype in which a network's products are computed: that is how finely it rounds."""
    dtype: torch.dtype = autocast_of(network) or network.dtype
    return dtype


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return torch.autocast, or nothing where there is no dtype: whatever is around it stays."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def in_its_mode(method: Callable[P, T]) -> Callable[P, T]:
    """Let a method compute in the mode of what it belongs to, which has a `device`."""

    @wraps(method)
    def within(*args: P.args, **named: P.kwargs) -> T:
        owner: Any = args[0]
        with autocasting(owner.device, autocast_of(owner)):
            return method(*args, **named)

    return within
