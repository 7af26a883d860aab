"""Somebody's folder of Python files, imported for as long as it is used, and its own modules with a pair's weights.

Promise: outside `active` nothing of a checkout is in `sys.modules` or on `sys.path`, so that two checkouts with the
same top-level names fit into one process, and nothing is written into one; whatever is wrong with one is one
`InputError` that names file and name. Every parameter of its modules has the value of the pair's, or one error lists
what does not fit; PyTorch's global generators stand where they stood; nothing of the pair is shared with the modules.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from harness.errors import InputError, text_of
from harness.models import Network, var_config
from harness.models.var.autoencoder import Autoencoder

PACKAGES = {
    "sklearn": "scikit-learn", "cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image",
}  # fmt: skip


class Checkout:
    """One checkout, imported: a folder that holds the top-level packages ``models`` and ``dist``, or those of `module`.

    `module` has the sampler's class `kind`; `stand_ins` are put in the place of modules that it wants. Raises
    `InputError`: it is not there, or its `module` cannot be imported. Effects: runs its code, output silenced.
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

    def check_method(self, owner: Any, name: str, known: tuple[str, ...]) -> None:
        """Raise `InputError` unless an object or class has a method of a name, and that takes every `known` name."""
        kind = owner if isinstance(owner, type) else type(owner)
        method = getattr(owner, name, None)
        if not callable(method):
            raise self.lacks(f"has no {kind.__name__}.{name}")
        signature = inspect.signature(method)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        missing = [each for each in known if each not in signature.parameters]
        if missing and not takes_any:
            raise self.lacks(f"has {kind.__name__}.{name}{signature}, which takes no {', '.join(missing)}")

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


# Arguments of VAR's constructor that the networks fix, and those of the published one whose defaults change no decode.
FIXED = ("vae_local", "vae", "num_classes", "depth", "embed_dim", "num_heads", "shared_aln", "attn_l2_norm",
         "patch_nums")  # fmt: skip
USUAL = ("mlp_ratio", "drop_rate", "attn_drop_rate", "drop_path_rate", "norm_eps", "cond_drop_rate",
         "flash_if_available", "fused_if_available")  # fmt: skip
WORDS = {"true": True, "false": False, "none": None}
SHARES = {"one": 1, "per-scale": 0}  # share_quant_resi of a layout of φ; of "shared" the number of φ
QUANTIZER = "quantize."


class CodesOnly(nn.Module):
    """What samplers see of a VQ-VAE: its quantiser, and our pixels (the published decoder is of one size)."""

    def __init__(self, quantize: nn.Module, vae: Autoencoder) -> None:
        super().__init__()
        self.quantize: Any = quantize
        self.Cvae, self.vocab_size = vae.config.C, vae.config.V
        self._decode = vae.decode

    def fhat_to_img(self, f_hat_BCPP: Tensor) -> Tensor:
        """Return images in [-1, 1], a tensor of their own: samplers write into it."""
        with torch.autocast(f_hat_BCPP.device.type, enabled=False):  # pixels are the harness's
            return self._decode(f_hat_BCPP) * 2 - 1


def build_vae(checkout: Checkout, vae: Autoencoder, patch_nums: tuple[int, ...], device: torch.device) -> CodesOnly:
    """Return the VQ-VAE that samplers meet. Raises `InputError` where the checkout's quantiser is another."""
    config = vae.config
    share = SHARES.get(config.phi_layout, config.phi)
    with building(checkout, device, "VectorQuantizer2"):
        try:
            kind: Any = importlib.import_module("models.quant").VectorQuantizer2
        except (ImportError, AttributeError) as error:
            rule = f"models/quant.py has no VectorQuantizer2 ({text_of(error)})"
            raise InputError("checkout", str(checkout.folder), rule, "see docs/own-decoder.md") from None
        quantize = kind(
            vocab_size=config.V, Cvae=config.C, using_znorm=False, v_patch_nums=patch_nums, share_quant_resi=share
        )
    weights = {n.removeprefix(QUANTIZER): w for n, w in vae.weights.items() if n.startswith(QUANTIZER)}
    _load(checkout, quantize, weights, "VectorQuantizer2")
    return CodesOnly(quantize.to(device).eval(), vae)


def named(options: Mapping[str, str], word: str) -> dict[str, str]:
    """Return the options ``word.NAME`` by their names."""
    return {name.partition(".")[2]: text for name, text in options.items() if name.partition(".")[0] == word != name}


def value_of(text: str) -> object:
    """Return what an option's text says: a number, a list, true, false, none, or the text itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _arguments(checkout: Checkout, kind: str = "VAR", fixed: Collection[str] = FIXED) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class's constructor that the networks do not fix."""
    parameters = list(inspect.signature(checkout.get(kind)).parameters.values())[1:]  # the first one is the autoencoder
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {each.name: each for each in parameters if each.name not in fixed and each.kind not in variable}


def defaults_of(checkout: Checkout, init: Mapping[str, str]) -> dict[str, object]:
    """Return the arguments of VAR's constructor that nobody gave and that the published one does not have."""
    return {
        name: each.default
        for name, each in _arguments(checkout).items()
        if name not in (*USUAL, *init) and each.default is not inspect.Parameter.empty
    }


def build_network(checkout: Checkout, network: Network, vae: CodesOnly, init: Mapping[str, str]) -> Any:
    """Return the checkout's ``VAR`` with a network's weights. Raises `InputError` where it has none that takes them."""
    config = var_config(network)
    fixed = {
        "num_classes": config.classes, "depth": config.depth, "embed_dim": config.D, "num_heads": config.H,
        "shared_aln": config.shared_adaln, "attn_l2_norm": config.l2_norm, "patch_nums": config.pyramid.patch_nums,
    }  # fmt: skip
    return build_module(checkout, "VAR", network, (vae, fixed), init)


def build_module(
    checkout: Checkout, name: str, network: Network, given: tuple[nn.Module, Mapping[str, Any]], init: Mapping[str, str]
) -> Any:
    """Return the checkout's class of a name with our weights: autoencoder and arguments `given`, more in `init`."""
    (vae, fixed), device = given, network.device
    known = _arguments(checkout, name, {*FIXED, *fixed})
    for word, text in init.items():
        if word not in known:
            remedy = f"pass one of {', '.join(f'init.{each}' for each in known) or 'none'}"
            of_networks = word in (*FIXED, *fixed)
            rule = "is fixed by the networks" if of_networks else f"is no argument of {name}'s constructor"
            raise InputError("option", f"init.{word}={text}", rule, remedy)
    with building(checkout, device, name):
        try:
            module = checkout.get(name)(vae, **fixed, **{word: value_of(text) for word, text in init.items()})
        except TypeError as error:
            raise checkout.lacks(f"has a {name} that takes other arguments ({text_of(error)})") from None
    _load(checkout, module, network.weights, name)
    module = module.to(device).eval().requires_grad_(False)
    if isinstance(getattr(module, "uniform_prob", None), Tensor):
        module.uniform_prob = module.uniform_prob.to(device)
    if isinstance(getattr(module, "rng", None), torch.Generator) and module.rng.device.type != device.type:
        module.rng = torch.Generator(device=device)
    return module


def _load(checkout: Checkout, module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Copy weights in by name; what is left over on either side must be a buffer."""
    try:
        missing, unknown = module.load_state_dict({n: w.detach() for n, w in weights.items()}, strict=False)
    except RuntimeError as error:
        raise checkout.lacks(f"has a {name} of other sizes ({text_of(error)[:300]})") from None
    parameters = {key for key, _ in module.named_parameters()}
    wrong = [f"missing {key}" for key in missing if key in parameters] + [f"unknown {key}" for key in unknown]
    if wrong:
        raise checkout.lacks(f"has a {name} of other parameters: {', '.join(wrong[:6])}")


@contextmanager
def building(checkout: Checkout, device: torch.device, name: str) -> Iterator[None]:
    """Let the checkout build what it calls `name`: its output silenced, the global generators kept, its device ours.

    `dist.get_device()` says where a module's own generator lives, and would say what the machine has. Raises
    `InputError` whatever is raised.
    """
    cards = [device] if device.type == "cuda" else []
    with checkout.active(), torch.random.fork_rng(cards), on_device(device):
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise checkout.lacks(f"builds no {name} ({type(error).__name__}: {text_of(error)})") from None


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Let `dist.get_device()` of the active checkout say where the weights are, by whatever module it is called."""
    try:
        real = getattr(importlib.import_module("dist"), "get_device", None)
    except ImportError:
        real = None
    places = [each for each in list(sys.modules.values()) if real and vars(each).get("get_device") is real]

    def here() -> torch.device:
        return device

    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch.object(place, "get_device", here))
        yield
