"""A decoder under test: found by name, built, and sent to other processes; what its process may take.

Promise: what `build` returns has a known contract and a `decode`; anything else is one `InputError`. A factory without
a name travels as bytes. A limit that nobody can mean is bad input; `Surroundings` are all that two processes share, so
that both compute the same.
"""

import difflib
import importlib
import inspect
import resource
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Self, cast

import torch

from harness.adapters import PUBLISHED_FACTORIES, PUBLISHED_PREFIX
from harness.decoders._crash import place_of_import, raised_in
from harness.errors import InputError, StopSignal, shown, text_of
from harness.models import ModelPair
from harness.processes import is_refused_connection, refused_write
from harness.protocol import DECLINES, Contract, Implementation, Settings
from harness.rounding import precision, set_precision
from harness.signals import ctrl_c_is_a_stop
from harness.speculative.sampler import build_decoder

TIMEOUT_S = 600.0  # a decode of ten images by the published sizes takes seconds on a GPU, minutes on a CPU


class OutOfTimeError(BaseException):
    """A decode is taking too long; no `Exception`, so that a decoder cannot swallow it by accident."""


@dataclass(frozen=True)
class Limits:
    """What a decoder's process may take. Raises `InputError`: no such time or memory."""

    timeout_s: float = TIMEOUT_S  # seconds of one decode
    memory_gib: float = 0.0  # GiB that it may allocate on the host; 0 = no limit
    allow_write: tuple[str, ...] = ()  # folders that it may write to, besides its own
    connects: bool = True  # it may connect to others by TCP, a cluster's scheduler among them

    def __post_init__(self) -> None:
        object.__setattr__(self, "allow_write", tuple(str(Path(folder).absolute()) for folder in self.allow_write))
        if not 0 < self.timeout_s < float("inf"):
            raise InputError("timeout", self.timeout_s, "must be a number of seconds above 0", "pass --timeout 600")
        if not 0 <= self.memory_gib < float("inf"):
            raise InputError("memory", self.memory_gib, "must be 0 GiB or more", "pass --memory 0 for no limit")

    def bound_memory(self) -> None:
        """Let this process, and what it starts, allocate no more than `memory_gib`. Effects: its limits."""
        if self.memory_gib:
            most = int(self.memory_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@dataclass(frozen=True)
class Surroundings:
    """What a process shares with the one that starts it, so that both compute the same."""

    tf32: bool  # the mode of precision
    threads: int  # that PyTorch computes with
    path: tuple[str, ...]  # where modules are found

    @classmethod
    def here(cls, processes: int = 1) -> Self:
        """Return those of this process, whose threads so many processes share out."""
        path = tuple(folder or str(Path.cwd()) for folder in sys.path)
        return cls(precision()["tf32_matmul"], max(1, torch.get_num_threads() // processes), path)

    def restore(self, path: Sequence[str] | None = None) -> None:
        sys.path[:] = self.path if path is None else path
        set_precision(self.tf32)
        torch.set_num_threads(self.threads)


Factory = Callable[[ModelPair, Settings], Implementation]
OWN_DECODER = "harness:build_decoder"  # the harness's own
MOST_OFFERED = 8  # callables of a module that a message names


def is_own_decoder(factory: Factory | str) -> bool:
    """Tell whether a factory builds the harness's own decoder, which need not be mistrusted."""
    return factory == OWN_DECODER or factory is build_decoder


def parse_factory_options(
    checkout: Path | None, given: Sequence[str], option: str = "option", stubs: Sequence[str] = ()
) -> tuple[tuple[str, str], ...]:  # fmt: skip
    """Return the options of a factory: its checkout, as an absolute path since a factory may change folder, and more.

    Raises `InputError` where one of those `given` after --`option` does not read NAME=VALUE.
    """
    options = [("checkout", str(checkout.absolute()))] if checkout is not None else []
    for text in given:
        name, equals, value = text.partition("=")
        word, _, rest = name.partition(".")
        if not equals or not (name.isidentifier() or (word == "init" and rest.isidentifier())):
            raise InputError(option, text, "must read NAME=VALUE, or init.NAME=VALUE", f"pass --{option} gamma=2")
        options.append((name, value))
    for text in stubs:
        name, equals, file = text.partition("=")
        if not equals or not all(word.isidentifier() for word in name.split(".")):
            raise InputError("stub", text, "must read NAME=FILE", "pass --stub wandb=stub.py")
        options.append((f"stub.{name}", str(Path(file).absolute())))
    return tuple(options)


def load_factory(name: str) -> Factory:
    """Find a factory by ``package.module:attribute``, or one of `adapters.factories` by ``published:name``.

    Raises `InputError`: the name has another form, the module cannot be imported, or the attribute is not callable.
    """
    module_name, _, attribute = name.partition(":")
    example = f"pass --implementation {OWN_DECODER}"
    if "/" in module_name or module_name.endswith(".py"):
        path = Path(module_name.removesuffix(".py"))
        rule = "is a file, not a module" if module_name.endswith(".py") else "is a path, not a module"
        apart = path.is_absolute() or ".." in path.parts
        meant = path.name if apart else ".".join(path.parts)
        where = f" in the folder {path.parent}" * apart
        raise InputError("implementation", name, rule, f"pass {meant}:{attribute or 'factory'}{where}")
    if not module_name or module_name.startswith("."):
        raise InputError("implementation", name, "must read package.module:factory", example)
    if module_name == PUBLISHED_PREFIX and attribute:
        if attribute not in PUBLISHED_FACTORIES:
            known = ", ".join(f"{PUBLISHED_PREFIX}:{each}" for each in PUBLISHED_FACTORIES)
            raise InputError("implementation", name, "is no published sampler that is known", f"pass one of {known}")
        return PUBLISHED_FACTORIES[attribute]
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: a decoder in the current folder is found
    try:
        with ctrl_c_is_a_stop():
            module = importlib.import_module(module_name)
            is_there, factory = hasattr(module, attribute), getattr(module, attribute, None)
    except (StopSignal, OutOfTimeError):
        raise
    except BaseException as error:
        check_refused_write(error)
        missing = f"{error.name}." if isinstance(error, ModuleNotFoundError) else ":"
        if not attribute and f"{module_name}.".startswith(missing):  # there is no such module: a dot for the colon?
            head, _, last = module_name.rpartition(".")
            is_meant = name == module_name and last and head.replace(".", "").isidentifier()
            meant = f"pass --implementation {head}:{last}" if is_meant else example
            raise InputError("implementation", name, "must read package.module:factory", meant) from None
        rule = f"cannot be imported ({type(error).__name__}: {text_of(error)})"
        remedy = "see how it is spelt, and run in the folder where it lies"
        if place := place_of_import(error):
            remedy = f"{'install that, or ' * isinstance(error, ModuleNotFoundError)}mend {place}"
        raise InputError("implementation", name, rule, remedy) from None
    if not is_there:
        every = {word: each for word, each in getattr(module, "__dict__", {}).items() if not word.startswith("_")}
        words = [word for word, each in every.items() if _is_of(module_name, each) and _takes_two(each)]
        # a factory is a function, most often, and called so; what is wrapped may take more than it says, or less
        words.sort(key=lambda word: (
            word != "factory", not _takes_two(every[word], follow_wrapped=True), type(every[word]) is not FunctionType
        ))  # fmt: skip
        offers = [f"{module_name}:{word}" for word in words]
        near = difflib.get_close_matches(name, offers, 1) if attribute else []
        none = f"{module_name} defines no factory(models, settings)"
        remedy = f"pass {' or '.join(near or offers[:MOST_OFFERED])}" if offers else none
        rule = f"module {module_name} has no {attribute}" if attribute else "names a module, not a factory in it"
        raise InputError("implementation", name, rule, remedy)
    if not callable(factory):
        raise InputError("implementation", name, "must be callable as factory(models, settings)", example)
    return cast("Factory", factory)


def _is_of(module_name: str, each: object) -> bool:
    where = attribute_of(each.func if type(each) is partial else each, "__module__", None)
    return isinstance(where, str) and where == module_name and callable(each)


def _takes_two(each: Any, follow_wrapped: bool = False) -> bool:
    """Tell whether it may be called as a factory, with models and settings; so may what says nothing of itself."""
    try:
        signature = inspect.signature(each, follow_wrapped=follow_wrapped)
    except (StopSignal, OutOfTimeError):
        raise
    except BaseException:
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def factory_name(factory: Factory) -> str:
    """Return a factory's name for messages: ``package.module:attribute`` where it has one."""
    qualified = getattr(factory, "__qualname__", "")
    return f"{factory.__module__}:{qualified}" if qualified else str(getattr(factory, "id", type(factory).__name__))


def build_by_factory(factory: Factory, models: ModelPair, settings: Settings) -> Implementation:
    """Let a factory build its decoder.

    Raises `InputError`: it refuses the settings, fails, leaves an option unread, or returns something without a known
    contract and `decode`.
    """
    name, remedy, read = factory_name(factory), "see docs/own-decoder.md", list[str]()
    try:
        with ctrl_c_is_a_stop():
            given = _heard(settings, read) if settings.options else settings
            kept, decoder = weakref.ref(given), factory(models, given)
            del given
            contract, decode = getattr(decoder, "contract", None), getattr(decoder, "decode", None)
            declines = attribute_of(decoder, "declines", ())
    except (InputError, StopSignal, OutOfTimeError):
        raise
    except BaseException as error:  # of whatever kind: the factory is somebody else's code
        check_refused_write(error)
        rule = f"failed to build a decoder ({raised_in(error)})"
        is_of_the_call = error.__traceback__ is not None and error.__traceback__.tb_next is None
        if isinstance(error, TypeError) and is_of_the_call and not _takes_two(factory):
            rule, remedy = f"cannot be called with two arguments ({text_of(error)})", "write factory(models, settings)"
        raise InputError("implementation", name, rule, remedy) from None
    known = isinstance(declines, tuple | list) and all(isinstance(word, str) and word in DECLINES for word in declines)
    if not callable(decode):
        rule = f"built a {type(decoder).__name__}, which has no decode(request, noise)"
    elif not isinstance(contract, str) or contract not in list(Contract):
        rule = f"built a decoder that claims {shown(contract)}, not one of {', '.join(list(Contract))}"
    elif not known:
        rule = f"built a decoder that declines {shown(declines)}, not a tuple of {', '.join(map(repr, DECLINES))}"
    else:
        if kept() is None:  # who keeps its settings may read them later
            _check_read(settings, read)
        return decoder
    raise InputError("implementation", name, rule, remedy)


def _heard(settings: Settings, read: list[str]) -> Settings:
    """Return equal settings that note in `read` which options a factory reads; all, where it takes them together."""

    class Heard(Settings):
        def __getattribute__(self, name: str) -> Any:
            if name == "__class__":  # equal to others, and copied as one of them
                return Settings
            if name in ("options", "__dict__"):
                read.extend(dict(settings.options))
            return super().__getattribute__(name)

        def option(self, name: str, default: str = "") -> str:
            read.append(name)
            return settings.option(name, default)

        def __reduce__(self) -> tuple[type[Settings], tuple[object, ...]]:
            return Settings, tuple(vars(self).values())

    return Heard(**vars(settings))


def _check_read(settings: Settings, read: Sequence[str]) -> None:
    """Refuse an option that a factory did not read: a misspelt one, or one of other settings. Raises `InputError`.

    A checkout may be the folder of its own code (`bisect`), which it need not read.
    """
    names = ", ".join(dict.fromkeys(name for name in read if name != "checkout"))
    for name, value in settings.options:
        if name not in (*read, "checkout"):
            word, _, rest = name.partition(".")
            typed = ("stub", f"{rest}={value}") if word == "stub" else ("option", f"{name}={value}")
            rule = f"was not read by the factory under these settings, where it reads {names or 'no option'}"
            remedy = "see how it is spelt, drop it, or read it whatever the settings are: settings.option(NAME)"
            raise InputError(*typed, rule, remedy)


def check_refused_write(error: BaseException) -> None:
    """Raise `InputError` where code ended since its process may not write a file, or reach others: no defect."""
    path = refused_write(error)
    if path:
        rule = "lies outside the folder of the decoder's process, which may write nowhere else"
        raise InputError("file", path, rule, f"write under TMPDIR, or pass --allow-write {Path(path).parent}") from None
    if is_refused_connection(error):
        rule = "is refused to a decoder on a cluster, which does whatever anybody who reaches it says"
        raise InputError("connection", "TCP", rule, "verify without --cluster") from None


def attribute_of(decoder: object, name: str, default: object) -> object:
    """Return an attribute that a decoder need not have; whatever is raised in its place, it has none."""
    try:
        with ctrl_c_is_a_stop():
            return getattr(decoder, name, default)
    except (StopSignal, OutOfTimeError):
        raise
    except BaseException:  # `__getattr__` may be somebody else's code
        return default


@dataclass(frozen=True)
class Built:
    contracts: list[str] = field(default_factory=list)  # what they claim, by setting
    # process-wide settings of precision that building them changed, a clause each
    moved: list[str] = field(default_factory=list)
    lengthless: bool = False  # none of them reads a draft length: they say so by `takes_draft_len`
    isolation: str = ""  # what keeps them from the judge, in words; empty where nothing needs to
    declines: list[list[str]] = field(default_factory=list)  # what they declare not to do, by setting

    @classmethod
    def of(cls, decoders: Sequence[Implementation], moved: list[str], isolation: str = "") -> Self:
        """Return what decoders of `build_by_factory` say of themselves."""
        lengthless = all(attribute_of(decoder, "takes_draft_len", True) is False for decoder in decoders)
        declines = [list(cast("Sequence[str]", attribute_of(decoder, "declines", ()))) for decoder in decoders]
        return cls([str(decoder.contract) for decoder in decoders], moved, lengthless, isolation, declines)


def pickled_factory(factory: Factory, name: str) -> bytes:
    """Return a factory as bytes: functions of a main script, lambdas and closures too.

    Raises `InputError`: it holds what cannot be pickled, or cloudpickle is not installed.
    """
    try:
        import cloudpickle  # noqa: PLC0415  # only factories without a name need it

        return bytes(cloudpickle.dumps(factory))
    except Exception as error:
        rule = f"cannot be sent to a process of its own ({type(error).__name__}: {error})"
        remedy = "name it as package.module:factory, or verify with Terms(in_process=True)"
        raise InputError("implementation", name, rule, remedy) from None
