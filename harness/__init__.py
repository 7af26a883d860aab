"""Differential testing and verification of speculative decoding for VAR image models: the public names."""

from harness.errors import HarnessError, InputError, NonFiniteError
from harness.judge.verdict import Verdict
from harness.models.pair import ModelPair, load_digits, load_pair
from harness.protocol.contract import Contract
from harness.protocol.decoder import Implementation, Settings
from harness.protocol.noise import SeededNoise
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request
from harness.protocol.trace import Intermediates, Round, Trace
from harness.runs.limits import Limits
from harness.runs.result import Verification
from harness.runs.terms import Terms
from harness.runs.verification import verify
from harness.speculative.build import build_decoder

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
    "build_decoder",
    "load_digits",
    "load_pair",
    "verify",
]
