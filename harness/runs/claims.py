"""What was seen of a decoder besides its decodes: laws, and the quality of its images.

Promise: plain values that a run file keeps and gives back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class BrokenLaw:
    """A law that is broken.

    Args:
        component: what it watches.
        clause: which law, what was seen, and the line that replays it.
        seed: of its case.
    """

    component: str
    clause: str
    seed: int


@dataclass(frozen=True)
class LawsTried:
    """What was seen of laws that were tried after a run.

    Args:
        cases: in how many each was tried.
        held: how many held, and were exercised.
        broken: those that are broken.
        trivial: ids of those that no case exercised.
        refused: ids of those of which the decoder refused every case.
        why: what it said to the first of these.
        not_applicable: ids of those that say nothing about such a decoder.
        left: ids of those that nobody tried.
    """

    cases: int
    held: int
    broken: tuple[BrokenLaw, ...] = ()
    trivial: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    why: str = ""
    not_applicable: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

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
        ...


@dataclass(frozen=True)
class KeptFigures:
    """Figures that a run file gave back."""

    kept: dict[str, object]

    def values(self) -> dict[str, object]:
        """Return what ``quality --json`` writes."""
        return self.kept


@dataclass(frozen=True)
class QualityClaims:
    """Claims on the quality of images that do not hold, a clause each.

    Args:
        broken: a loss beyond the one that is allowed.
        open: too few images to decide.
    """

    broken: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return what a run file and ``verify --json`` keep."""
        return {"broken": list(self.broken), "open": list(self.open)}

    @classmethod
    def from_dict(cls, values: Any) -> QualityClaims:
        """Return what `as_dict`, or JSON made of it, says."""
        return cls(tuple(map(str, values["broken"])), tuple(map(str, values["open"])))
