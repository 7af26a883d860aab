"""What a run says of itself: networks, terms, budget, and the command that repeats it, as a run file keeps them.

Promise: what is read is equal to what was written; docs/runs.md names the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from harness.decoders.process import Limits
from harness.decoders.terms import Other, Terms
from harness.protocol.contract import Contract
from harness.protocol.pyramid import ScalePyramid
from harness.rounding.budget import Budget
from harness.runs.identity import Identity
from harness.runs.records import against_of


@dataclass(frozen=True)
class NetworksUsed:
    """The networks of a run, by what they are called and their sizes; the rest is in its identity."""

    title: str  # what they are called
    device: str  # where they lie
    dtype: str  # of the target
    draft_dtype: str  # of the draft
    patch_nums: list[int]  # sides of the scales
    V: int  # size of the vocabulary
    classes: int  # number of labels

    @property
    def pyramid(self) -> ScalePyramid:
        """Their scales."""
        return ScalePyramid(tuple(self.patch_nums))


@dataclass(frozen=True)
class TermsUsed:
    """The terms of a run, as far as they are kept."""

    contract: str  # letter of what was demanded; empty = what the decoder claims
    sequential: bool  # as in `Terms`; so are `in_process`, `limits`, `covers` and `unasked`
    in_process: bool
    limits: Limits
    # the decoder in the reference's place as JSON values (`records.against_values`)
    against: Mapping[str, object] | None
    covers: bool
    unasked: int

    def other(self, setting: int) -> Other | None:
        """Return the decoder in the reference's place, with its settings for one of the decoder's."""
        return against_of(self.against, setting)

    def terms(self, against: Other | None = None) -> Terms:
        """Return terms to judge by again; the budget is that of the machine at hand."""
        contract = Contract.of(self.contract) if self.contract else None
        used = {"sequential": self.sequential, "in_process": self.in_process, "unasked": self.unasked}
        return Terms(contract, limits=self.limits, against=against, **used)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RunDescription:
    """What a run says of itself."""

    identity: Identity | None  # what it is of; None where nobody asked
    networks: NetworksUsed  # those of both sides
    terms: TermsUsed  # how it is judged
    contracts: list[str]  # what the decoders claim, by setting
    budget: Budget  # how far rounding may move the networks
    images: int  # decodes of the plan
    recipe: Mapping[str, str] | None  # options of the command line that repeat it; None = no command line made it
    command: list[str]  # as it was typed
    more: Mapping[str, object]  # what is known when it is over, by key: who did it, laws, quality

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON values."""
        values = asdict(self)
        more = values.pop("more")
        return {**values, "identity": self.identity.as_dict() if self.identity else {}, **more}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunDescription:
        """Return what `as_dict` and JSON made these values of. Raises `KeyError` or `TypeError` for others."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name != "more"}
        known["identity"] = Identity.from_dict(values["identity"]) if values["identity"] else None
        known["networks"] = NetworksUsed(**values["networks"])
        known["terms"] = TermsUsed(**{**values["terms"], "limits": Limits(**values["terms"]["limits"])})
        known["budget"] = Budget(**values["budget"])
        return cls(**known, more={name: value for name, value in values.items() if name not in known})
