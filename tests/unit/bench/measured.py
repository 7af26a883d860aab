"""Measurements by hand."""

from __future__ import annotations

from harness.bench._speed import Bench, Machine
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
MACHINE = Machine("by hand", 1e9, 1e12)


def bench(bonus: bool = False) -> Bench:
    return Bench(MODELS, False, 1, MACHINE, bonus)
