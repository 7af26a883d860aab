"""Words for counts and dates, and letters that every terminal has.

Promise: one of a thing is singular; whatever is printed, a stream without a letter gets a readable one in its place.
"""

import codecs
import math
import time

READABLE = "readable"  # name of the error handler, for `TextIOWrapper.reconfigure(errors=…)`
LETTERS = {
    "Δ": "d", "α": "alpha", "β": "beta", "γ": "gamma", "θ": "theta", "μ": "u", "µ": "u", "π": "pi", "τ": "tau",
    "φ": "phi", "ε": "eps", "×": "x", "·": "-", "•": "*", "…": "...", "—": "-", "–": "-", "−": "-", "‑": "-",
    "≤": "<=", "≥": ">=", "≈": "~", "≠": "!=", "±": "+-", "∞": "inf", "→": "->", "←": "<-", "²": "^2", "√": "sqrt",
    "‘": "'", "’": "'", "“": '"', "”": '"', "─": "-", "━": "-", "│": "|", "✓": "yes", "✗": "no", "\u00a0": " ",
}  # fmt: skip


def count_of(count: int, noun: str, plural: str = "", form: str = "") -> str:
    """Return ``1 image``, ``2 images``; the plural is the noun with an s where it is left out."""
    return f"{count:{form}} {noun if count == 1 else plural or f'{noun}s'}"


def number(value: float | None, form: str = ".2g", unit: str = "", none: str = "-") -> str:
    """Return a number in a form, with its unit; a dash of none."""
    return none if value is None or math.isnan(value) else format(value, form) + unit


def date_of(seconds: float) -> str:
    """Return a time, in seconds since 1970, as words."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def spelled(text: str, encoding: str) -> str:
    """Return a text as a stream of an encoding shows it; done before its width is measured (≤ takes two columns)."""
    return text.encode(encoding, READABLE).decode(encoding)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Answer for letters that an encoding lacks: known ones are spelled in ASCII, others escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelled = (LETTERS.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in lacking)
    return "".join(spelled), error.end


codecs.register_error(READABLE, _substitute)
