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
    """The networks of a run, by what they are called and their sizes; the rest is in its identity.

    Args:
        title: what they are called.
        device: where they lie.
        dtype: of the target.
        draft_dtype: of the draft.
        patch_nums: sides of the scales.
        V: size of the vocabulary.
        classes: number of labels.
    """

    title: str
    device: str
    dtype: str
    draft_dtype: str
    patch_nums: list[int]
    V: int
    classes: int

    @property
    def pyramid(self) -> ScalePyramid:
        """Their scales."""
        return ScalePyramid(tuple(self.patch_nums))


@dataclass(frozen=True)
class TermsUsed:
    """The terms of a run, as far as they are kept.

    Args:
        contract: letter of what was demanded; empty = what the decoder claims.
        sequential: as in `Terms`; so are `in_process`, `limits`, `covers` and `unasked`.
        against: the decoder in the reference's place as JSON values (`records.against_values`).
    """

    contract: str
    sequential: bool
    in_process: bool
    limits: Limits
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
    """What a run says of itself.

    Args:
        identity: what it is of; None where nobody asked.
        networks: those of both sides.
        terms: how it is judged.
        contracts: what the decoders claim, by setting.
        budget: how far rounding may move the networks.
        images: decodes of the plan.
        recipe: options of the command line that repeat it; None = no command line made it.
        command: as it was typed.
        more: what is known when it is over, by key: who did it, laws, quality.
    """

    identity: Identity | None
    networks: NetworksUsed
    terms: TermsUsed
    contracts: list[str]
    budget: Budget
    images: int
    recipe: Mapping[str, str] | None
    command: list[str]
    more: Mapping[str, object]

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
