"""Errors that a user of the harness can meet.

Promise: every error raised on purpose is a `HarnessError`, and bad input reads in one line as `name=value`, the rule
that it breaks, and the remedy.
"""

from __future__ import annotations


class HarnessError(Exception):
    """Base of every error that the harness raises on purpose."""


class InputError(HarnessError):
    """Say which input is bad, which rule it breaks and what to do about it.

    Args:
        name: the input as the user knows it, e.g. ``draft_len``.
        value: what was given; shown with ``repr`` unless it is a string.
        rule: what must hold, e.g. ``must lie in 1..10``.
        remedy: what to do, e.g. ``pass --draft-len 5``.
    """

    def __init__(self, name: str, value: object, rule: str, remedy: str) -> None:
        self.name, self.value, self.rule, self.remedy = name, value, rule, remedy
        text = f"{name}={value if isinstance(value, str) else repr(value)}: {rule}; {remedy}"
        super().__init__(" ".join(text.split()))  # one line, whatever a file or another error put into it


class NonFiniteError(HarnessError):
    """Name the first tensor that holds NaN or infinity: a defect of the decoder or its weights, not of the input.

    Args:
        tensor: dotted name of the tensor, e.g. ``target.logits``.
        where: where in the decode it was met, e.g. ``scale 3``; may be empty.
    """

    def __init__(self, tensor: str, where: str = "") -> None:
        self.tensor, self.where = tensor, where
        super().__init__(f"non-finite values in {tensor}{f' at {where}' if where else ''}")


class NoiseError(HarnessError):
    """A random number was read in a way that the contract of the run forbids."""
