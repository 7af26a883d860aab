"""What a family of networks may be asked with besides labels and a guidance value: packed rows, guidance by scale.

Promise: values, frozen and comparable, that JSON holds without loss; what they mean is the family's to say, and what a
family does not read it refuses (`Request.check_for`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from harness.errors import InputError


@dataclass(frozen=True, eq=False)
class Rows:
    """A condition of T >= 1 rows, such as an encoded text. Raises `InputError`: they are no finite float32 numbers."""

    numbers_TA: Tensor  # float32, on the CPU; nobody may write into it

    def __post_init__(self) -> None:
        numbers = self.numbers_TA
        if numbers.dtype != torch.float32 or numbers.dim() != 2 or not numbers.numel() or not numbers.isfinite().all():
            shape = f"{numbers.dtype} {tuple(numbers.shape)}"
            raise InputError("texts", shape, "must be finite float32 numbers (T, A)", "pass one row or more")

    @cached_property
    def _key(self) -> tuple[tuple[int, ...], bytes]:
        return tuple(self.numbers_TA.shape), self.numbers_TA.cpu().contiguous().numpy().tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> Self:
        """Return the rows of nested lists."""
        return cls(torch.tensor(values, dtype=torch.float32))


@dataclass(frozen=True)
class ScaleGuidance:
    """Guidance of a family whose weights are a list: w·conditional + (1−w)·unconditional, over a temperature; 1 is off.

    Raises `InputError`: a number is not finite, or a temperature not positive.
    """

    weights: tuple[float, ...]  # one a scale
    temperatures: tuple[float, ...] = ()  # one a scale, by which logits are divided; empty = 1
    places: tuple[int, ...] = (0,)  # where it acts: 0 the logits, -k what comes out of the k-th block from the last

    def __post_init__(self) -> None:
        for name in ("weights", "temperatures", "places"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not all(math.isfinite(number) for number in (*self.weights, *self.temperatures)):
            raise InputError("scale_guidance", self.weights, "must hold finite numbers", "drop it")
        if not all(tau > 0 for tau in self.temperatures):
            raise InputError("temperatures", self.temperatures, "must be positive", "drop them")

    @property
    def guided(self) -> bool:
        """Whether any scale is guided: unconditional rows run only then."""
        return any(w != 1 for w in self.weights)

    def temperature(self, si: int) -> float:
        """Return the temperature of scale `si`."""
        return self.temperatures[si] if self.temperatures else 1.0


Guidance = float | ScaleGuidance  # VAR's is one number, whose weight t = cfg·ramp grows along the scales


def unguided(guidance: Guidance) -> Guidance:
    """Return guidance that is switched off at every scale; temperatures stay."""
    if isinstance(guidance, ScaleGuidance):
        return replace(guidance, weights=(1.0,) * len(guidance.weights))
    return 0.0


def guidance_text(guidance: Guidance) -> str:
    """Return guidance in words, in size."""
    if isinstance(guidance, ScaleGuidance):
        return f"weights {', '.join(f'{w:g}' for w in guidance.weights)}"
    return f"cfg {abs(guidance):g}"


def growth(guidance: Guidance, ramp: float, si: int) -> float:
    """Return by how much guidance of the logits makes an error of a row larger at most, at scale `si`.

    `ramp` is si/(S-1). (1+t)·c − t·u moves by 1 + 2·|t| errors, (w·c + (1−w)·u)/τ by (|w| + |1−w|)/τ.
    """
    if isinstance(guidance, ScaleGuidance):
        w = guidance.weights[si]
        return (abs(w) + abs(1 - w)) / guidance.temperature(si)
    return 1 + 2 * abs(guidance * ramp)


def largest_factor(guidance: Guidance, ramp: float, si: int) -> float:
    """Return the largest number that a row is multiplied with in a usual form of the formula; `ramp` as in `growth`."""
    if isinstance(guidance, ScaleGuidance):
        w = guidance.weights[si]
        return max(1.0, abs(w), abs(1 - w)) / guidance.temperature(si)
    return 1 + abs(guidance * ramp)
