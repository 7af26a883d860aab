"""Every test here knows the toy family."""

from __future__ import annotations

import pytest

from tests import bits


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    bits.plant(monkeypatch)
