"""Differential testing and verification of speculative decoding for VAR image models: the public names."""

from harness.errors import HarnessError, InputError, NonFiniteError
from harness.implementations import Implementation, Settings
from harness.models.pair import ModelPair, load_digits, load_pair
from harness.noise import SeededNoise
from harness.pyramid import ScalePyramid
from harness.request import Request
from harness.trace import Intermediates, Round, Trace
from harness.verdict import Verdict
from harness.verification import Verification, verify

__all__ = [
    "HarnessError",
    "Implementation",
    "InputError",
    "Intermediates",
    "ModelPair",
    "NonFiniteError",
    "Request",
    "Round",
    "ScalePyramid",
    "SeededNoise",
    "Settings",
    "Trace",
    "Verdict",
    "Verification",
    "load_digits",
    "load_pair",
    "verify",
]
