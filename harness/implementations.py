"""What a decoder under test must offer, and how one is found.

Promise: anything with `contract` and `decode(request, noise) -> Trace` can be judged. `tokens_BL`, `f_hat_BCPP` and
`scale_writes_BS` are indispensable; the more of the trace is filled in, the closer the harness can point at a mistake.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.errors import InputError
from harness.models.pair import ModelPair
from harness.noise import SeededNoise
from harness.request import Request
from harness.speculative.observer import Observer
from harness.speculative.policies import CONTRACTS, parse
from harness.speculative.sampler import Options, SpeculativeDecoder
from harness.trace import Trace


@dataclass(frozen=True)
class Settings:
    """How a decoder should speculate: what a factory gets besides the models.

    Args:
        draft_len: scales proposed per round: a number, or the text of another rule (`speculative.draft_length`).
        bonus: submit the scale behind the drafted ones too.
        policy: coupling and acceptance rule, as on the command line.
    """

    draft_len: int | str = 5
    bonus: bool = False
    policy: str = "coupled"

    @property
    def greedy(self) -> bool:
        """True when the oracle takes the most likely token in place of a draw."""
        return self.policy == "greedy"

    def __str__(self) -> str:
        return f"{self.policy} draft_len={self.draft_len}{' bonus' if self.bonus else ''}"


class Implementation(Protocol):
    """A decoder under test."""

    @property
    def contract(self) -> str:
        """What it claims: ``token-identical``, ``distribution-identical`` or ``quality-preserving``."""
        ...

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        """Draw a batch; all randomness comes from `noise`, read as "draft" and "target"."""
        ...


Factory = Callable[[ModelPair, Settings], Implementation]


def speculative(models: ModelPair, settings: Settings, observer: Observer | None = None) -> Implementation:
    """Build the harness's own decoder; the default implementation. Raises `InputError` for settings that do not fit."""
    options = Options(settings.draft_len, settings.bonus, parse(settings.policy))
    return SpeculativeDecoder(models, options, observer=observer)


DEFAULT = "harness.implementations:speculative"


def load_factory(name: str) -> Factory:
    """Find a factory by ``package.module:attribute``.

    Raises:
        InputError: the name has another form, the module cannot be imported, or the attribute is not callable.
    """
    module_name, _, attribute = name.partition(":")
    example = f"pass --implementation {DEFAULT}"
    if not module_name or not attribute or module_name.startswith("."):
        raise InputError("implementation", name, "must read package.module:factory", example)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: a decoder in the current folder is found
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        rule = f"cannot be imported ({type(error).__name__}: {error})"
        raise InputError("implementation", name, rule, "run where it is importable") from None
    if not hasattr(module, attribute):
        raise InputError("implementation", name, f"module {module_name} has no {attribute}", example)
    factory: Factory = getattr(module, attribute)
    if not callable(factory):
        raise InputError("implementation", name, "must be callable as factory(models, settings)", example)
    return factory


def build(factory: Factory, models: ModelPair, settings: Settings) -> Implementation:
    """Let a factory build its decoder.

    Raises:
        InputError: it refuses the settings, fails, or returns something without a known contract and `decode`.
    """
    name = getattr(factory, "__name__", type(factory).__name__)
    remedy = "see docs/own-decoder.md"
    try:
        decoder = factory(models, settings)
        contract, decode = getattr(decoder, "contract", None), getattr(decoder, "decode", None)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        rule = f"failed to build a decoder ({type(error).__name__}: {error})"
        raise InputError("implementation", name, rule, remedy) from None
    if not callable(decode):
        rule = f"built a {type(decoder).__name__}, which has no decode(request, noise)"
        raise InputError("implementation", name, rule, remedy)
    if not isinstance(contract, str) or contract not in CONTRACTS.values():
        rule = f"built a decoder that claims {contract!r}, not one of {', '.join(CONTRACTS.values())}"
        raise InputError("implementation", name, rule, remedy)
    return decoder
