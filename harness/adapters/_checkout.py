"""Somebody's folder of Python files: imported for as long as it is used, and never written into.

Promise: outside `active` nothing of a checkout is in `sys.modules` or on `sys.path`, so that two checkouts with the
same top-level names fit into one process; whatever is wrong with one is one `InputError` that names file and name.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch

from harness.errors import InputError, text_of

PACKAGES = {
    "sklearn": "scikit-learn", "cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image",
}  # fmt: skip


class Checkout:
    """One checkout, imported: a folder that holds the top-level packages ``models`` and ``dist``, or those of `module`.

    `module` has the sampler's class `kind`; `stand_ins` are put in the place of modules that it wants.

    Raises `InputError`: it is not there, or its `module` cannot be imported.

    Effects: runs the checkout's own code, output silenced.
    """

    def __init__(
        self, folder: str | Path, stubs: Mapping[str, str] | None = None, module: str = "models.var", kind: str = "VAR",
        stand_ins: Mapping[str, ModuleType] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self._stubs, self._name = Path(folder).absolute(), dict(stubs or {}), module
        self._file = f"{module.replace('.', '/')}.py"
        self._remedy = f"pass --checkout DIR, a folder that holds {self._file}"
        if not self.folder.is_dir():
            raise InputError("checkout", str(folder), "no such folder", self._remedy)
        if not (self.folder / self._file).is_file():
            remedy = f"pass a checkout whose {self._file} has {kind}"
            raise InputError("checkout", str(folder), f"holds no {self._file}", remedy)
        self._modules = {name: each for name, each in (stand_ins or {}).items() if name not in self._stubs}
        self._tops = {entry.stem for entry in self.folder.iterdir() if entry.is_dir() or entry.suffix == ".py"}
        self._tops |= {name.partition(".")[0] for name in (*self._stubs, *self._modules)}
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
            # what the checkout's code put on it, and on which side
            first = next((at for at, each in enumerate(sys.path) if each in before), len(sys.path))
            self._ahead = list(dict.fromkeys(sys.path[:first])) or [str(self.folder)]
            self._behind = list(dict.fromkeys(each for each in sys.path[first:] if each not in before))
            path[:], sys.path = before, path
            self._modules = {name: sys.modules.pop(name) for name in list(sys.modules) if self._is_ours(name)}
            sys.modules.update(hidden)

    def get(self, name: str) -> Any:
        """Return what the checkout's module calls `name`. Raises `InputError` where it has nothing of that name."""
        if not hasattr(self.module, name):
            raise self.lacks(f"has no {name}")
        return getattr(self.module, name)

    def method(self, owner: Any, name: str, known: tuple[str, ...] = ()) -> inspect.Signature:
        """Return the signature of a method of an object or class. Raises `InputError` if it takes no `known` name."""
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
        """Return the error that says what the module of this checkout is not."""
        return InputError("checkout", str(self.folder), f"{self._file} {rule}", "see docs/own-decoder.md")

    def missing(self, name: str, place: str) -> InputError:
        """Return the error of a module that the checkout wants, at a file of its own, and that is not found."""
        top = name.partition(".")[0]
        rule, remedy = f"the package {name}, which is not installed", f"pip install {PACKAGES.get(top, top)}, or pass"
        if top in self._tops:
            rule, remedy = f"{name}, which the checkout itself does not hold", "pass a checkout that does, or"
        remedy = f"{remedy} --stub {name}=FILE, a file of Python that stands for it"
        return InputError("checkout", str(self.folder), f"{place} needs {rule}", remedy)

    def _is_ours(self, name: str) -> bool:
        return name.partition(".")[0] in self._tops

    def _imported(self) -> ModuleType:
        importlib.invalidate_caches()
        cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        words = sys.argv
        try:
            with self.active(), torch.random.fork_rng(cards):
                sys.argv = [str(self.folder / self._file)]  # code may parse what it takes for its own
                for name, file in self._stubs.items():
                    self._stub(name, Path(file))
                return importlib.import_module(self._name)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            frame = _last_frame(error, self.folder)
            place = f"{Path(frame.filename).relative_to(self.folder)}:{frame.lineno}" if frame else self._file
            if isinstance(error, ModuleNotFoundError) and error.name:
                raise self.missing(error.name, place) from None
            why = f"cannot be imported ({type(error).__name__}: {text_of(error)})"
            if isinstance(error, SystemExit):
                why = f"exits when it is imported (status {error.code})"
            raise InputError("checkout", str(self.folder), f"{place} {why}", self._remedy) from None
        finally:
            sys.argv = words

    def _stub(self, name: str, file: Path) -> None:
        """Let a file stand for a module. Raises `InputError` where it cannot be imported."""
        spec = importlib.util.spec_from_file_location(name, file)
        if not name or spec is None or spec.loader is None or not file.is_file():
            raise InputError("stub", f"{name}={file}", "is no file of Python", "pass --stub NAME=FILE.py")
        module = importlib.util.module_from_spec(spec)
        module.__path__ = []  # its submodules, if any, are stubbed by name
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            rule = f"cannot be imported ({type(error).__name__}: {text_of(error)})"
            raise InputError("stub", f"{name}={file}", rule, "pass --stub NAME=FILE.py") from None
        top, _, rest = name.rpartition(".")
        if top in sys.modules:
            setattr(sys.modules[top], rest, module)


def _last_frame(error: BaseException, folder: Path) -> traceback.FrameSummary | None:
    frames = traceback.extract_tb(error.__traceback__)
    return next((each for each in reversed(frames) if Path(each.filename).is_relative_to(folder)), None)


def crash_of(error: BaseException, folder: Path) -> str:
    frame = _last_frame(error, folder)
    where = f" in {frame.name}, {Path(frame.filename).name}:{frame.lineno}" if frame else ""
    return f"{type(error).__name__}: {' '.join(text_of(error).split())[:300]}{where}"


class _Sink(io.RawIOBase):
    """Takes bytes, and stays open: code may wrap or close what it prints to."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)

    def close(self) -> None:
        """Stay open."""
