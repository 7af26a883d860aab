"""The laws hold for the toy family, those of both contracts; what is VAR's alone is not asked."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judge._verdict import Verdict
from harness.laws import LAWS, Case, CaseList, Law, Subject, try_law
from harness.speculative.sampler import build_decoder

SOME: dict[str, Any] = {"family": "bits", "V": 2, "patch_nums": (1, 2, 4, 3), "draft": "near"}
LISTED = [
    Case(labels=(0, 1, 3), draft_len=2, bonus=True, **SOME),
    Case(labels=(1, 2), weights=2, draft_len=3, policy="rejection", cfg=0.5, seed=3, **SOME),
    Case(labels=(2,), weights=1, draft_len=2, bonus=True, top_p=0.9, order="batch", policy="rejection", seed=1, **SOME),
]
OF_VAR = {
    "guidance.off", "numbers.transformer", "numbers.encode",
    "numbers.pixels", "numbers.precision",
}  # fmt: skip
# they need 680 positions, or walk every branch (test_decode.py has a smaller one), or ask noise alone
ELSEWHERE = {
    "acceptance.real", "acceptance.exact", "rules.length", "streams.independent", "streams.law",
}  # fmt: skip


@pytest.mark.parametrize("law", [law for law in LAWS if law.id not in ELSEWHERE], ids=lambda law: law.id)
def test_a_law_holds(law: Law):
    row = try_law(law, Subject(build_decoder), CaseList(LISTED))
    assert row.violation is None, str(row.violation)
    assert row.verdict is (None if law.id in OF_VAR else Verdict.IDENTICAL), row


@pytest.mark.slow
@pytest.mark.parametrize("law", [law for law in LAWS if law.id == "acceptance.exact"], ids=lambda law: law.id)
def test_the_exact_law_holds_over_nine_bits(law: Law):
    assert try_law(law, Subject(build_decoder), CaseList(LISTED[:2])).verdict is Verdict.IDENTICAL
