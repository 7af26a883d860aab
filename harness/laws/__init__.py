"""The laws of a correct speculative decoder for VAR models; `run_conformance` is the entry for other decoders."""

from harness.laws.case import Case
from harness.laws.catalogue import LAWS
from harness.laws.conformance import check, run_conformance
from harness.laws.engine import Report, fixed_cases
from harness.laws.law import Law, NotOffered, Subject, Violation

__all__ = [
    "LAWS", "Case", "Law", "NotOffered", "Report", "Subject", "Violation", "check", "fixed_cases", "run_conformance",
]  # fmt: skip
