"""The laws of a correct speculative decoder for VAR models; `run_conformance` is the entry for other decoders."""

from harness.laws._case import Case
from harness.laws._conformance import LAWS, check, run_conformance
from harness.laws._engine import Report, fixed_cases
from harness.laws._law import Law, NotOffered, Subject, Violation

__all__ = [
    "LAWS", "Case", "Law", "NotOffered", "Report", "Subject", "Violation", "check", "fixed_cases", "run_conformance",
]  # fmt: skip

from harness.laws._case import PYRAMIDS, forget_models
from harness.laws._conformance import (
    LAW_CASES, LawsInterrupted, LawsPlace, LawWork, inspect_parts, part_laws, try_laws_quickly,
)  # fmt: skip
from harness.laws._engine import CaseList, LawResult, Scope, try_law
