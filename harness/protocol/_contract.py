"""What a decoder may claim, and which claim holds when another does.

Promise: the one place that names the three contracts; texts elsewhere are read from here.

Source: design §1.
"""

from __future__ import annotations

from enum import StrEnum

from harness.errors import InputError


class Contract(StrEnum):
    """The claims, the strongest first; each entails those after it. The value is the name that results carry."""

    TOKENS = "token-identical"
    LAW = "distribution-identical"
    QUALITY = "quality-preserving"

    @property
    def letter(self) -> str:
        """A, B or C: the short name, as on the command line."""
        return "ABC"[list(Contract).index(self)]

    @property
    def claim(self) -> str:
        """What is claimed, one clause."""
        return {
            "A": "same seed, same tokens as sequential target decoding",
            "B": "the law of sequential target decoding",
            "C": "lossy by a stated rule, at a measured distance",
        }[self.letter]

    def entails(self, other: Contract) -> bool:
        """Tell whether a decoder that keeps this contract keeps `other` too."""
        return self.letter <= other.letter

    @classmethod
    def of(cls, text: str) -> Contract:
        """Return the contract of a letter or a name.

        Raises `InputError`: neither.
        """
        for contract in cls:
            if text in (contract.letter, contract.value):
                return contract
        raise InputError("contract", text, "must be A, B or C", "drop it to take the decoder's own")
