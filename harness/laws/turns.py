"""What laws compare of rounds: scales and tokens, and not what a decoder spent on them."""

from __future__ import annotations

from typing import Any

from harness.laws.law import require
from harness.protocol.trace import Round

SAID = (
    "first", "drafted", "accepted", "corrected", "bonus", "accepted_tokens", "corrected_tokens", "bonus_tokens",
)  # fmt: skip


def said(turn: Round) -> dict[str, Any]:
    """Return what a round says of scales and tokens."""
    return {name: getattr(turn, name) for name in SAID}


def require_rounds(got: list[list[Round]], due: list[list[Round]], where: str) -> None:
    """Raise `Broken` with the first round that says something else than it must."""
    for image, (actual, expected) in enumerate(zip(got, due, strict=True)):
        for k, (one, other) in enumerate(zip(actual, expected, strict=False)):
            wrong = {name: value for name, value in said(one).items() if value != said(other)[name]}
            at = f"{where}: round {k} of image {image} (from scale {other.first})"
            require(not wrong, f"{at} says {wrong}, not { {name: said(other)[name] for name in wrong} }")
        require(len(actual) == len(expected), f"{where}: image {image} took {len(actual)} rounds, not {len(expected)}")
