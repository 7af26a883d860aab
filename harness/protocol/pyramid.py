"""The scale pyramid: which token positions belong to which scale. Integers only.

Promise: the spans of the scales partition ``0..L-1`` in order, for any strictly increasing sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from harness.errors import InputError

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True)
class ScalePyramid:
    """Sides of the token maps, coarse to fine.

    Args:
        patch_nums: side of every scale; positive, strictly increasing, the first one 1.

    Raises:
        InputError: the sides break the rule above.

    Source: spec §1.
    """

    patch_nums: tuple[int, ...]

    def __post_init__(self) -> None:
        sides = tuple(int(pn) for pn in self.patch_nums)
        object.__setattr__(self, "patch_nums", sides)
        increasing = all(a < b for a, b in pairwise(sides))
        if not sides or sides[0] != 1 or not increasing:
            raise InputError(
                "patch_nums", sides, "must start at 1 and increase strictly", f"for 256 px use {PATCH_NUMS_256}"
            )

    @property
    def S(self) -> int:
        """Number of scales."""
        return len(self.patch_nums)

    @property
    def L(self) -> int:
        """Number of tokens of all scales."""
        return self.end(self.S - 1)

    @property
    def P(self) -> int:
        """Side of the last scale, and so of f_hat."""
        return self.patch_nums[-1]

    def tokens(self, si: int) -> int:
        """Number of tokens of scale `si`."""
        return self.patch_nums[si] ** 2

    def begin(self, si: int) -> int:
        """First position of scale `si`; `si` = S gives L."""
        return sum(pn * pn for pn in self.patch_nums[:si])

    def end(self, si: int) -> int:
        """One past the last position of scale `si`."""
        return self.begin(si + 1)

    def span(self, si: int) -> slice:
        """Positions of scale `si` as a slice."""
        return slice(self.begin(si), self.end(si))

    def level_of(self, position: int) -> int:
        """Scale that owns `position` (0..L-1)."""
        return next(si for si in range(self.S) if position < self.end(si))

    def levels(self) -> list[int]:
        """Scale of every position, in order: L integers."""
        return [si for si in range(self.S) for _ in range(self.tokens(si))]

    def __iter__(self) -> Iterator[int]:
        """Scale indices, coarse to fine."""
        return iter(range(self.S))

    def ramp(self, si: int) -> float:
        """si/(S-1): 0 at the first scale, 1 at the last; 0 when there is one scale only (spec §3)."""
        return si / (self.S - 1) if self.S > 1 else 0.0


KNOWN_PYRAMIDS = (ScalePyramid(PATCH_NUMS_256), ScalePyramid(PATCH_NUMS_512))
