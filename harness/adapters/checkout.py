"""Somebody's folder of Python files: imported for as long as it is used, and never written into.

Promise: outside `active` nothing of a checkout is in `sys.modules` or on `sys.path`, so that two checkouts with the
same top-level names fit into one process; whatever is wrong with one is one `InputError` that names file and name.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch

from harness.errors import InputError, text_of

MODULE = "models.var"
REMEDY = "pass --checkout DIR, a folder that holds the packages models and dist"


class Checkout:
    """One checkout, imported.

    Args:
        folder: holds the top-level packages ``models`` and ``dist``.

    Raises:
        InputError: it is not there, or its ``models/var.py`` cannot be imported.

    Effects: runs the checkout's own code, output silenced.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        if not self.folder.is_dir():
            raise InputError("checkout", str(folder), "is no folder that is there", REMEDY)
        if not (self.folder / "models" / "var.py").is_file():
            raise InputError("checkout", str(folder), "holds no models/var.py", REMEDY)
        entries = [entry for entry in self.folder.iterdir() if entry.is_dir() or entry.suffix == ".py"]
        self._tops = {entry.stem for entry in entries}
        self._modules: dict[str, ModuleType] = {}
        self._ahead, self._behind = [str(self.folder)], list[str]()  # of sys.path
        self._depth = 0
        self.module = self._imported()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let the checkout's modules be found; its output goes nowhere."""
        if self._depth:
            yield
            return
        hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if self._is_ours(name)}
        path, before, bytecode = sys.path, list(sys.path), sys.dont_write_bytecode
        sys.modules.update(self._modules)
        path[:] = [*self._ahead, *before, *self._behind]
        sys.dont_write_bytecode = True  # a checkout under test stays as it is
        self._depth += 1
        try:
            with contextlib.redirect_stdout(io.TextIOWrapper(cast(Any, _Sink()), encoding="utf-8")):
                yield
        finally:
            self._depth -= 1
            sys.dont_write_bytecode = bytecode
            self._keep_path(before)
            path[:], sys.path = before, path
            self._modules = {name: sys.modules.pop(name) for name in list(sys.modules) if self._is_ours(name)}
            sys.modules.update(hidden)

    def get(self, name: str) -> Any:
        """Return what ``models/var.py`` calls `name`. Raises `InputError` where it has nothing of that name."""
        if not hasattr(self.module, name):
            raise self.lacks(f"has no {name}")
        return getattr(self.module, name)

    def method(self, owner: Any, name: str, known: tuple[str, ...] = ()) -> inspect.Signature:
        """Return the signature of a method.

        Args:
            owner: the object or class that should have it.
            name: the method.
            known: parameters that it must take by name.

        Raises:
            InputError: there is no such method, or it takes no such parameter.
        """
        kind = owner if isinstance(owner, type) else type(owner)
        method = getattr(owner, name, None)
        if not callable(method):
            raise self.lacks(f"has no {kind.__name__}.{name}")
        signature = inspect.signature(method)
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
            return signature
        missing = [each for each in known if each not in signature.parameters]
        if missing:
            raise self.lacks(f"has {kind.__name__}.{name}{signature}, which takes no {', '.join(missing)}")
        return signature

    def lacks(self, rule: str) -> InputError:
        """Return the error that says what ``models/var.py`` of this checkout is not."""
        return InputError("checkout", str(self.folder), f"models/var.py {rule}", "see docs/own-decoder.md")

    def _keep_path(self, before: list[str]) -> None:
        """Remember what the checkout's code put on `sys.path`, and on which side."""
        first = next((at for at, each in enumerate(sys.path) if each in before), len(sys.path))
        self._ahead = list(dict.fromkeys(sys.path[:first])) or [str(self.folder)]
        self._behind = list(dict.fromkeys(each for each in sys.path[first:] if each not in before))

    def _is_ours(self, name: str) -> bool:
        return name.partition(".")[0] in self._tops

    def _imported(self) -> ModuleType:
        importlib.invalidate_caches()
        cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        try:
            with self.active(), torch.random.fork_rng(cards):
                return importlib.import_module(MODULE)
        except ModuleNotFoundError as error:
            rule = f"{self._place(error)} needs the package {error.name}, which is not installed"
            raise InputError("checkout", str(self.folder), rule, f"pip install {error.name}") from None
        except SystemExit as error:
            rule = f"{self._place(error)} exits when it is imported (status {error.code})"
            raise InputError("checkout", str(self.folder), rule, REMEDY) from None
        except Exception as error:
            rule = f"{self._place(error)} cannot be imported ({type(error).__name__}: {text_of(error)})"
            raise InputError("checkout", str(self.folder), rule, REMEDY) from None

    def _place(self, error: BaseException) -> str:
        """Return the last file of the checkout that an error went through, with its line."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(self.folder)]
        if not frames:
            return "models/var.py"
        return f"{Path(frames[-1].filename).relative_to(self.folder)}:{frames[-1].lineno}"


def crash_of(error: BaseException, folder: Path) -> str:
    """Describe an exception by the last frame in the checkout."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(folder))]
    where = f" in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(text_of(error).split())[:300]}{where}"


class _Sink(io.RawIOBase):
    """Takes bytes, and stays open: code may wrap or close what it prints to."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)

    def close(self) -> None:
        """Stay open."""
