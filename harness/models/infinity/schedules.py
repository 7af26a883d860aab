"""The schedules of Infinity: the published table, and schedules as people type them.

Promise: what a schedule is called says its scales and its full sides. Source: the Infinity page, §1.
"""

from dataclasses import dataclass

from harness.errors import InputError
from harness.numerals import whole

SIZES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # scales
# (h, w) of all scales after (1, 1), by height over width; the others are these with h and w exchanged.
_TALL = {
    "1.0": "2,2 4,4 6,6 8,8 12,12 16,16 20,20 24,24 32,32 40,40 48,48 64,64",
    "1.25": "2,2 3,3 5,4 10,8 15,12 20,16 25,20 30,24 35,28 45,36 55,44 70,56",
    "1.333": "2,2 4,3 8,6 12,9 16,12 20,15 24,18 28,21 36,27 48,36 60,45 72,54",
    "1.5": "2,2 3,2 6,4 9,6 15,10 21,14 27,18 33,22 39,26 48,32 63,42 78,52",
    "1.75": "2,2 3,3 7,4 11,6 14,8 21,12 28,16 35,20 42,24 56,32 70,40 84,48",
    "2.0": "2,2 4,2 6,3 10,5 16,8 22,11 30,15 38,19 46,23 60,30 74,37 90,45",
    "2.5": "2,2 5,2 10,4 15,6 20,8 25,10 30,12 40,16 50,20 65,26 80,32 100,40",
    "3.0": "2,2 6,2 9,3 15,5 21,7 27,9 36,12 45,15 54,18 72,24 90,30 111,37",
}
_WIDE = dict(zip(("0.8", "0.75", "0.666", "0.571", "0.5", "0.4", "0.333"), list(_TALL)[1:], strict=True))
Sides = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Schedule:
    """Sides (h, w) of every scale, and full ones, which coordinates are of."""

    sides: Sides
    full: tuple[int, int]


def parse_schedule(text: str) -> Schedule:
    """Return a schedule of the table, RATIO/SIZE, or one of its own, 1x1,2x2,… with /HxW for other full sides.

    Raises `InputError` for another form, ratio or size.
    """
    first, _, second = text.partition("/")
    whole_table = _table(first)
    if whole_table:
        if second not in SIZES:
            raise _refused(text, f"must end in one of {', '.join(SIZES)}")
        return Schedule(whole_table[: SIZES[second]], whole_table[-1])
    if "x" not in first:
        raise _refused(text, f"must begin with one of {', '.join((*_TALL, *_WIDE))}, or with sides")
    try:
        pairs = [
            tuple(whole(side) for side in pair.split("x")) for pair in (*first.split(","), *([second] * bool(second)))
        ]
        sides = tuple((h, w) for h, w in pairs)
    except ValueError:
        raise _refused(text, "must list sides as 1x1,2x2,3x4") from None
    return Schedule(sides[:-1] if second else sides, sides[-1])


def _table(ratio: str) -> Sides:
    """Return all 13 scales of a ratio; none of one that is not in the table."""
    if ratio in _WIDE:
        return tuple((w, h) for h, w in _table(_WIDE[ratio]))
    pairs = (pair.split(",") for pair in _TALL.get(ratio, "").split())
    sides = tuple((int(h), int(w)) for h, w in pairs)
    return ((1, 1), *sides) if sides else ()


def _refused(text: str, rule: str) -> InputError:
    return InputError("schedule", text, rule, "pass --schedule 1.0/1M, or 1x1,2x2,4x4")
