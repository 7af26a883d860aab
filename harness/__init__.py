"""Differential testing and verification of speculative decoding for VAR image models: the public names.

A name is imported when it is first asked for: pytest loads every plugin that is installed, and no run of tests that
have nothing to do with this package may wait for PyTorch.
"""

import os
import sys

# The command alone, and no import: a signal ends it with its own status and no word while the rest is imported, until
# `signals.interruptible` is entered. `_signal` is there from the start; what stands above it is imported in no time.
if sys.argv[0].endswith("sdvar-harness") or (sys.argv[0] == "-m" and " -m harness " in f"{' '.join(sys.orig_argv)} "):
    import _signal  # type: ignore[import-not-found]

    for _number in (1, 2, 15):
        if _signal.getsignal(_number) != _signal.SIG_IGN:  # as `nohup` has it
            _signal.signal(_number, lambda number, frame: os._exit(128 + number))

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.version import __version__

if TYPE_CHECKING:
    from harness.decoders import Limits, Terms
    from harness.errors import HarnessError, InputError, NonFiniteError
    from harness.judge import Verdict
    from harness.models import ModelPair, load_digits, load_pair
    from harness.models.infinity.checkpoint import load_digits_bits
    from harness.protocol import Contract, Implementation, Intermediates, Request, Round, Settings, Trace
    from harness.protocol.noise import SeededNoise
    from harness.protocol.pyramid import ScalePyramid
    from harness.runs import LikelihoodTest, Verification
    from harness.speculative.sampler import build_decoder
    from harness.verification import verify

__all__ = [
    "Contract", "HarnessError", "Implementation", "InputError", "Intermediates", "LikelihoodTest", "Limits",
    "ModelPair", "NonFiniteError", "Request", "Round", "ScalePyramid", "SeededNoise", "Settings", "Terms", "Trace",
    "Verdict", "Verification", "__version__", "build_decoder", "load_digits", "load_digits_bits", "load_pair", "verify",
]  # fmt: skip

# Where each name lives; tests/unit/test_public_names.py sees that it is where type checkers find it above.
_HOMES = {
    "decoders": ("Limits", "Terms"),
    "errors": ("HarnessError", "InputError", "NonFiniteError"),
    "judge": ("Verdict",),
    "models": ("ModelPair", "load_digits", "load_pair"),
    "models.infinity.checkpoint": ("load_digits_bits",),
    "protocol": ("Contract", "Implementation", "Intermediates", "Request", "Round", "Settings", "Trace"),
    "protocol.noise": ("SeededNoise",),
    "protocol.pyramid": ("ScalePyramid",),
    "runs": ("LikelihoodTest", "Verification"),
    "speculative.sampler": ("build_decoder",),
    "verification": ("verify",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = public = getattr(import_module(f"{__name__}.{home}"), name)
    return public


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
