"""Numbers as the command line lists them: ``0,3,5`` or ``0:4``, and how many are too many."""

from __future__ import annotations

from harness.errors import InputError

MOST_NUMBERS = 10**6


def integers(name: str, text: str, example: str) -> tuple[int, ...]:
    """Parse ``0,3,5`` or a half-open range ``0:4``.

    Raises:
        InputError: another form, or nothing named.
    """
    remedy = f"pass --{name.replace('_', '-')} {example}"
    try:
        if ":" in text:
            begin, end = (int(part) for part in text.split(":", maxsplit=1))
            if end - begin > MOST_NUMBERS:
                raise InputError(name, text, f"names more than {MOST_NUMBERS} numbers", f"pass --{name} {example}")
            found = tuple(range(begin, end))
        else:
            found = tuple(int(part) for part in text.split(","))
    except ValueError:  # of thousands of digits, too
        raise InputError(name, text, "must read 0,3,5 or 0:4", remedy) from None
    if not found:
        raise InputError(name, text, "names nothing", remedy)
    return found


def counts(name: str, text: str, example: str) -> tuple[int, ...]:
    """Parse numbers of images. Raises `InputError` as `integers` does, and for one below 1 or beyond all memory."""
    found = integers(name, text, example)
    if min(found) < 1:
        raise InputError(name, text, "must all be at least 1", f"pass --{name} {example}")
    check_most(name, max(found), example)
    return found


def check_most(name: str, number: int, example: str) -> None:
    """Refuse a number of things that no machine holds. Raises `InputError`."""
    if number > MOST_NUMBERS:
        raise InputError(name, number, f"must be {MOST_NUMBERS} at most", f"pass --{name} {example}")
