"""The layout of an image: which positions belong to which scale, and which draws to which position. Integers only.

Promise: the spans of the scales partition ``0..L-1`` in order, those of positions and those of draws, for any
rectangles and any number of channels; a position's draws lie side by side. Inputs, masks and caches go by position;
tokens, logits and random numbers by draw. VAR draws one token a position, so that both are the same there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from harness.errors import InputError

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


class Runs:
    """Runs of numbers from 0 on, one a scale, of `counts` each."""

    counts: tuple[int, ...]

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return (0, *accumulate(self.counts))

    @property
    def L(self) -> int:
        """Number of all."""
        return self._ends[-1]

    def begin(self, si: int) -> int:
        """First number of scale `si`; `si` = S gives L."""
        return self._ends[si]

    def end(self, si: int) -> int:
        """One past the last number of scale `si`."""
        return self._ends[si + 1]

    def span(self, si: int) -> slice:
        """Numbers of scale `si` as a slice."""
        return slice(self._ends[si], self._ends[si + 1])

    def level_of(self, number: int) -> int:
        """Scale that owns a number (0..L-1)."""
        return next(si for si, end in enumerate(self._ends[1:]) if number < end)

    def levels(self) -> list[int]:
        """Scale of every number, in order: L integers."""
        return [si for si, count in enumerate(self.counts) for _ in range(count)]


@dataclass(frozen=True)
class Spans(Runs):
    """Runs of given lengths."""

    counts: tuple[int, ...]


@dataclass(frozen=True)
class ScalePyramid(Runs):
    """The scales of an image, coarse to fine; its runs are those of positions, row by row within a scale (spec §1).

    Raises `InputError`: the sides break the rules below.
    """

    patch_nums: tuple[int, ...] = ()  # sides of squares, strictly increasing from 1; empty where scales are none
    sides: tuple[tuple[int, int], ...] = ()  # (h, w) of every scale in place of these: any, the first one (1, 1)
    channels: int = 1  # N, draws a position

    def __post_init__(self) -> None:
        sides, squares = tuple((int(h), int(w)) for h, w in self.sides), tuple(int(pn) for pn in self.patch_nums)
        if not sides:
            if not _grow_from_one(squares):
                rule = "must start at 1 and increase strictly"
                raise InputError("patch_nums", squares, rule, f"for 256 px use {PATCH_NUMS_256}")
            sides = tuple((pn, pn) for pn in squares)
        widths = tuple(w for _, w in sides)
        squares = widths if _grow_from_one(widths) and all(h == w for h, w in sides) else ()
        if sides[0] != (1, 1) or any(min(each) < 1 for each in sides):
            raise InputError("sides", sides, "must be positive, and the first scale one position", "begin with (1, 1)")
        if self.channels < 1:
            raise InputError("channels", self.channels, "must be 1 or more", "drop it")
        object.__setattr__(self, "sides", sides)
        object.__setattr__(self, "patch_nums", squares)

    @cached_property
    def counts(self) -> tuple[int, ...]:  # type: ignore[override]
        """Number of positions of every scale."""
        return tuple(h * w for h, w in self.sides)

    @cached_property
    def draws(self) -> Spans:
        """Draws by scale: those of a position side by side, position by position."""
        return Spans(tuple(h * w * self.channels for h, w in self.sides))

    @property
    def S(self) -> int:
        """Number of scales."""
        return len(self.sides)

    @property
    def P(self) -> int:
        """Side of the last scale, a square."""
        return self.patch_nums[-1]

    def tokens(self, si: int) -> int:
        """Number of positions of scale `si`."""
        return self.counts[si]

    def place(self, draw: int) -> tuple[int, int]:
        """Return position and channel of a draw; the channel is -1 where a position has one draw alone."""
        position, channel = divmod(draw, self.channels)
        return position, channel if self.channels > 1 else -1

    def draw(self, position: int, channel: int) -> int:
        """Return the draw of a position's channel: what `place` says of it, the other way round."""
        return position * self.channels + max(channel, 0)

    def __iter__(self) -> Iterator[int]:
        """Scale indices, coarse to fine."""
        return iter(range(self.S))

    def ramp(self, si: int) -> float:
        """si/(S-1): 0 at the first scale, 1 at the last; 0 when there is one scale only (spec §3)."""
        return si / (self.S - 1) if self.S > 1 else 0.0


def _grow_from_one(sides: tuple[int, ...]) -> bool:
    return bool(sides) and sides[0] == 1 and all(a < b for a, b in pairwise(sides))


KNOWN_PYRAMIDS = (ScalePyramid(PATCH_NUMS_256), ScalePyramid(PATCH_NUMS_512))
