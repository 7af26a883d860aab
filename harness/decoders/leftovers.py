"""What somebody else's code leaves behind in this process: `torch` patched, another default dtype, generators moved.

Promise: what is found is named and put back. PyTorch's precision switches are `rounding.precision`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = str(Path(torch.__file__).parent)
OWNERS: dict[str, Any] = {
    "torch": torch,
    "torch.Tensor": Tensor,
    "torch.nn.functional": F,
    "torch.nn.Module": torch.nn.Module,
}


@contextmanager
def tidy() -> Iterator[list[str]]:
    """Run somebody else's code; what it left behind is undone, and listed when it ends, one clause each."""
    dtype, states = torch.get_default_dtype(), _states()
    functions = {name: _callables(owner) for name, owner in OWNERS.items()}
    found: list[str] = []
    try:
        yield found
    finally:
        if torch.get_default_dtype() != dtype:
            found.append(f"left the default dtype at {torch.get_default_dtype()}, not {dtype}")
            torch.set_default_dtype(dtype)
        for name, owner in OWNERS.items():
            for word, value in functions[name].items():
                now = vars(owner).get(word)
                if now is not value and not _by_torch(now, value):
                    found.append(f"left {name}.{word} patched")
                    setattr(owner, word, value)
        for name, generator, state in states:
            if not torch.equal(generator.get_state(), state):
                found.append(f"moved PyTorch's global generator{name}")
                generator.set_state(state)


def _by_torch(now: Any, before: Any) -> bool:
    """Tell whether PyTorch itself wrapped its function, as it does with `manual_seed` when `torch.compile` is used."""
    code = getattr(now, "__code__", None)
    return code is not None and code.co_filename.startswith(PACKAGE) and inspect.unwrap(now) is before


def _callables(owner: Any) -> dict[str, Any]:
    return {word: value for word, value in vars(owner).items() if callable(value) and not word.startswith("__")}


def _states() -> list[tuple[str, torch.Generator, Tensor]]:
    """Return the global generators that are there, each with its state."""
    cards = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    every = [("", torch.default_generator), *((f" of cuda:{k}", card) for k, card in enumerate(cards))]
    return [(name, generator, generator.get_state()) for name, generator in every]
