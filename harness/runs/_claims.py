"""What was seen of a decoder besides its decodes: laws, and the quality of its images.

Promise: plain values that a run file keeps and gives back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

THE_LAW = "acceptance.distribution"  # the law that compares what is drawn with the target's law: contract B's claim


@dataclass(frozen=True)
class BrokenLaw:
    """A law that is broken."""

    component: str  # what it watches
    clause: str  # which law, what was seen, and the line that replays it
    seed: int  # of its case


@dataclass(frozen=True)
class LawsTried:
    """What was seen of laws that were tried after a run."""

    cases: int  # in how many each was tried
    held: int  # how many held, and were exercised
    broken: tuple[BrokenLaw, ...] = ()  # those that are broken
    trivial: tuple[str, ...] = ()  # ids of those that no case exercised
    refused: tuple[str, ...] = ()  # ids of those of which the decoder refused every case
    why: str = ""  # what it said to the first of these
    not_applicable: tuple[str, ...] = ()  # ids of those that say nothing about such a decoder
    left: tuple[str, ...] = ()  # ids of those that nobody tried
    networks: tuple[str, ...] = ()  # of which kinds networks were: dtypes, and "shared AdaLN"

    @property
    def tested_the_law(self) -> bool:
        """Whether one of them compared what the decoder draws with the target's law, and held."""
        unproven = (*self.trivial, *self.refused, *self.not_applicable, *self.left)
        return not self.broken and THE_LAW not in unproven

    @property
    def asked(self) -> int:
        """Laws that apply and were tried."""
        return self.held + len(self.broken) + len(self.trivial) + len(self.refused)

    def as_dict(self) -> dict[str, object]:
        """Return what a run file and ``verify --json`` keep."""
        return {**vars(self), "broken": [(law.component, law.clause, law.seed) for law in self.broken]}

    @classmethod
    def from_dict(cls, values: Any) -> LawsTried:
        """Return what `as_dict`, or JSON made of it, says."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list | tuple)}
        return cls(**{**values, **lists, "broken": tuple(BrokenLaw(*law) for law in values["broken"])})


class QualityFigures(Protocol):
    """What was measured of the quality of images (`quality.stored.Measured`)."""

    def values(self) -> dict[str, object]:
        """Return what ``quality --json`` writes."""


@dataclass(frozen=True)
class KeptFigures:
    """Figures that a run file gave back."""

    kept: dict[str, object]

    def values(self) -> dict[str, object]:
        """Return what ``quality --json`` writes."""
        return self.kept


@dataclass(frozen=True)
class QualityClaims:
    """Claims on the quality of images that do not hold, a clause each."""

    broken: tuple[str, ...] = ()  # a loss beyond the one that is allowed
    open: tuple[str, ...] = ()  # too few images to decide

    def as_dict(self) -> dict[str, object]:
        """Return what a run file and ``verify --json`` keep."""
        return {"broken": list(self.broken), "open": list(self.open)}

    @classmethod
    def from_dict(cls, values: Any) -> QualityClaims:
        """Return what `as_dict`, or JSON made of it, says."""
        return cls(tuple(map(str, values["broken"])), tuple(map(str, values["open"])))
