"""Numbers as people write them, read strictly: digits 0 to 9, a sign, a point, an exponent, and nothing else.

Promise: what Python takes beyond that (`1_2`, other alphabets' digits, blanks, `nan`, what overflows to infinity) is
refused: it would be another number than was meant. One reader for numbers, lists of them and ranges.
"""

import math
import re

MOST_NUMBERS = 10**6  # that a list or a range may name
MOST_DIGITS = 30  # of a whole number: more than any option takes
WHOLE = re.compile(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}")
REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def whole(text: str) -> int:
    """Return a whole number. Raises `ValueError`."""
    if not WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def real(text: str) -> float:
    """Return a finite number. Raises `ValueError`."""
    value = float(text) if REAL.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def wholes(text: str) -> tuple[int, ...]:
    """Return the numbers of a list ``0,3,5`` or of a half-open range ``0:4``. Raises `ValueError`: why not."""
    begin, colon, end = text.partition(":")
    if not colon:
        return tuple(whole(part) for part in text.split(","))
    first, last = whole(begin), whole(end)
    if last - first > MOST_NUMBERS:
        raise ValueError(f"names more than {MOST_NUMBERS} numbers")
    return tuple(range(first, last))
