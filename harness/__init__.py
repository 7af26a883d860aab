"""Differential testing and verification of speculative decoding for VAR image models: the public names.

A name is imported when it is first asked for: pytest loads every plugin that is installed, and no run of tests that
have nothing to do with this package may wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.version import __version__

if TYPE_CHECKING:
    from harness.decoders.process import Limits
    from harness.decoders.terms import Terms
    from harness.errors import HarnessError, InputError, NonFiniteError
    from harness.judge.verdict import Verdict
    from harness.models.pair import ModelPair, load_digits, load_pair
    from harness.protocol.contract import Contract
    from harness.protocol.decoder import Implementation, Settings
    from harness.protocol.noise import SeededNoise
    from harness.protocol.pyramid import ScalePyramid
    from harness.protocol.request import Request
    from harness.protocol.trace import Intermediates, Round, Trace
    from harness.runs.result import Verification
    from harness.speculative.sampler import build_decoder
    from harness.verification import verify

__all__ = [
    "Contract",
    "HarnessError",
    "Implementation",
    "InputError",
    "Intermediates",
    "Limits",
    "ModelPair",
    "NonFiniteError",
    "Request",
    "Round",
    "ScalePyramid",
    "SeededNoise",
    "Settings",
    "Terms",
    "Trace",
    "Verdict",
    "Verification",
    "__version__",
    "build_decoder",
    "load_digits",
    "load_pair",
    "verify",
]

# Where each name lives; tests/unit/test_public_names.py sees that it is where type checkers find it above.
_HOMES = {
    "errors": ("HarnessError", "InputError", "NonFiniteError"),
    "judge.verdict": ("Verdict",),
    "models.pair": ("ModelPair", "load_digits", "load_pair"),
    "protocol.contract": ("Contract",),
    "protocol.decoder": ("Implementation", "Settings"),
    "protocol.noise": ("SeededNoise",),
    "protocol.pyramid": ("ScalePyramid",),
    "protocol.request": ("Request",),
    "protocol.trace": ("Intermediates", "Round", "Trace"),
    "verification": ("verify",),
    "decoders.process": ("Limits",),
    "runs.result": ("Verification",),
    "decoders.terms": ("Terms",),
    "speculative.sampler": ("build_decoder",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = public = getattr(import_module(f"{__name__}.{home}"), name)
    return public


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
