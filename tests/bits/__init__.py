"""A toy family of networks besides VAR: rectangles, three bits a position, conditions of one row or two, a rotation.

It stands for what is not VAR's: nothing but a row of three tables knows it (`planted`).
"""

from __future__ import annotations

import pytest

from harness.laws import _case
from harness.reference import _steps
from harness.speculative import parts
from tests.bits import cases, fast, plain


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the family known for as long as a test lasts."""
    monkeypatch.setitem(_steps.FAMILIES, "bits", plain.BITS)
    monkeypatch.setitem(parts.FAMILIES, "bits", fast.PARTS)
    monkeypatch.setitem(_case.FAMILIES, "bits", cases.CASES)
