"""Errors that a user of the harness can meet, and how any error is said in one line.

Promise: bad input reads in one line as `name=value`, the rule that it breaks, and the remedy. Whatever text comes from
outside, a line holds no control character. What leaves the harness is a `HarnessError`, a signal, or in tests a failure
of pytest; rooms have errors of their own for what they catch again.
"""

from __future__ import annotations

import importlib.util


class HarnessError(Exception):
    """Base of the errors that leave the harness."""


class InputError(HarnessError):
    """Say which input is bad (its `name` is the user's, e.g. ``draft_len``), and what was given as its `value`.

    `rule` says what must hold, e.g. ``must lie in 1..10``; `remedy` what to do, e.g. ``pass --draft-len 5``.
    """

    def __init__(self, name: str, value: object, rule: str, remedy: str) -> None:
        self.name, self.value, self.rule, self.remedy = name, value, rule, remedy
        super().__init__(one_line(f"{name}={value if isinstance(value, str) else shown(value)}: {rule}; {remedy}"))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        """Travel between processes: an exception is pickled by its arguments."""
        value = self.value if isinstance(self.value, str) else shown(self.value)
        return InputError, (self.name, value, self.rule, self.remedy)


class NonFiniteError(HarnessError):
    """Name the first tensor that holds NaN or infinity: a defect of the decoder or its weights, not of the input.

    `tensor` is its dotted name, e.g. ``target.logits``; `where` it was met may be empty, e.g. ``scale 3``.
    """

    def __init__(self, tensor: str, where: str = "") -> None:
        self.tensor, self.where = tensor, where
        super().__init__(f"non-finite values in {tensor}{f' at {where}' if where else ''}")

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, str]]:
        """Travel between processes: an exception is pickled by its arguments."""
        return NonFiniteError, (self.tensor, self.where)


class ImageError(HarnessError):
    """Say what is wrong with the image that a decoder returned: a defect of the decoder, not of the input."""


class NoiseError(HarnessError):
    """A random number was read in a way that the contract of the run forbids."""


class StopSignal(KeyboardInterrupt):
    """A signal asked the run to end; `status` is what a shell makes of it."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number
        super().__init__(number)


def check_installed(package: str, extra: str, name: str, value: object, rule: str) -> None:
    """Refuse an input that takes a package which is not there; an extra of this one brings it. Raises `InputError`."""
    if importlib.util.find_spec(package) is None:
        raise InputError(name, value, f"{rule}, which is not installed", f'pip install ".[{extra}]" in the clone')


def one_line(text: str) -> str:
    """Return a text on one line: white space joined, every other character that cannot be printed escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def shortened(text: str, most: int) -> str:
    """Return at most `most` characters: what a longer text lacks is its middle, since a remedy stands at the end."""
    head = most * 2 // 3
    return text if len(text) <= most else f"{text[:head]} … {text[len(text) - (most - head - 3) :]}"


def text_of(error: BaseException) -> str:
    """Return what an error says; the name of its type where it says nothing, or fails to."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # `__str__` may be somebody else's code
        return type(error).__name__


def shown(value: object) -> str:
    """Return the repr of a value; the name of its type where it has none, or one of thousands of digits."""
    try:
        return repr(value)
    except Exception:  # likewise, or Python's limit on the digits of an integer
        return f"({type(value).__name__} that cannot be shown)"
