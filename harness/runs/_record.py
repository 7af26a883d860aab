"""What a run says of itself when it begins: all that repeats it, and that tells whether it may be gone on with.

Promise: what is read from JSON is equal to what was written (docs/runs.md names the keys); values of another form are a
`KeyError`, `TypeError` or `ValueError`, which whoever reads a file makes one line of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from harness.decoders import Limits, Other, Terms
from harness.models import MODES, ModelPair, mode_name
from harness.protocol import Contract, Settings
from harness.protocol.pyramid import ScalePyramid
from harness.rounding import Budget
from harness.runs._identity import Identity, differences
from harness.schema import record_of

# Who counts: of the harness's own decoder and of published code, whose passes an adapter sees, the harness does; what
# another decoder states is its word, which nothing confirms.
HARNESS, DECODER = "harness", "decoder"
PLAIN = (
    "sequential",
    "in_process",
    "covers",
    "unasked",
    "strict",
    "may_differ_from",
)  # of the terms, those that are JSON values
# May differ between two parts of a run: file names, the number of workers, the system of the machine.
FREE = ("command", "recipe", "isolation")


@dataclass(frozen=True)
class NetworksUsed:
    """Names and sizes of a run's networks."""

    title: str  # of the pair
    device: str  # where they lay
    dtype: str  # the target's mode, as the command line names it
    draft_dtype: str
    patch_nums: tuple[int, ...]  # empty where scales are no squares that grow from 1
    V: int
    classes: int
    taken: tuple[str, ...] = ()  # what was taken from where in their files, where that is not plain
    sides: tuple[tuple[int, int], ...] = ()  # (h, w) of every scale, where there are no `patch_nums`
    channels: int = 1  # draws a position
    shared_adaln: bool = False  # of the target

    @classmethod
    def of(cls, models: ModelPair) -> NetworksUsed:
        target, draft = mode_name(models.target), mode_name(models.draft)
        config, layout, where = models.target.config, models.pyramid, str(models.device)
        sides = () if layout.patch_nums else layout.sides
        shape = (layout.patch_nums, config.V, config.classes, models.taken, sides, layout.channels)
        adaln = bool(getattr(config, "shared_adaln", False))
        return cls(models.title, where, target, draft, *shape, adaln)

    @property
    def pyramid(self) -> ScalePyramid:
        return ScalePyramid(self.patch_nums, self.sides, self.channels)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values; how a layout differs from VAR's stands there where it does."""
        plain = {"sides": (), "channels": 1}
        return {name: value for name, value in asdict(self).items() if name not in plain or value != plain[name]}

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Dtype of the target's weights, and of the draft's. Raises `KeyError` where a name is none of a mode."""
        return MODES[self.dtype][0], MODES[self.draft_dtype][0]


@dataclass(frozen=True)
class RunHeader:
    """What a run says of itself."""

    identity: Identity | None  # what it is of; None where nobody asked
    networks: NetworksUsed
    terms: Terms  # how it is judged; budgets are those of the machine at hand
    contracts: tuple[Contract, ...]  # what the decoders claim, by setting
    budget: Budget  # fixed before any decoder was built
    images: int  # decoded ones
    recipe: Mapping[str, str] | None  # options of the command line that repeat it; None where no command line made it
    command: tuple[str, ...]  # words of that command line
    workers: str = ""  # who did it; empty until it is done
    certifying: str = ""  # the precision that its ties are certified in; empty until it is done
    isolation: str = ""  # what kept the decoders from the judge, in words; empty where nothing needs to
    declines: tuple[tuple[str, ...], ...] = ()  # what the decoders declare not to do, by setting; empty = nothing
    counted_by: str = HARNESS  # who counted calls, rows and rounds: one of `HARNESS` and `DECODER`

    def as_dict(self) -> dict[str, Any]:
        terms = self.terms
        done = {"workers": self.workers, "certifying": self.certifying, "isolation": self.isolation}
        return {
            "identity": self.identity.as_dict() if self.identity else {},
            "networks": self.networks.as_dict(),
            "terms": {
                "contract": terms.contract.letter if terms.contract else "",
                "limits": asdict(terms.limits),
                "against": against_values(terms.against),
                **{name: getattr(terms, name) for name in PLAIN},
            },
            "contracts": [str(contract) for contract in self.contracts],
            "budget": asdict(self.budget),
            "images": self.images,
            "recipe": None if self.recipe is None else dict(self.recipe),
            "command": list(self.command),
            **({"declines": [list(words) for words in self.declines]} if any(self.declines) else {}),
            "counted_by": self.counted_by,
            **{name: text for name, text in done.items() if text},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunHeader:
        """Return what `as_dict` and JSON made these values of, among others by other names."""
        terms = {"strict": False, "may_differ_from": None, **values["terms"]}
        judged = Terms(
            Contract.of(terms["contract"]) if terms["contract"] else None, limits=Limits(**terms["limits"]),
            against=against_of(terms["against"]), **{name: terms[name] for name in PLAIN},
        )  # fmt: skip
        identity = Identity.from_dict(values["identity"]) if values["identity"] else None
        own = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        return record_of(cls, {**own, "identity": identity, "terms": judged})

    def differences(self, recorded: RunHeader) -> list[str]:
        """List why a recorded run is another one, one clause a value."""
        # weights are compared by their digests, wherever in which file they were
        records = (replace(one, networks=replace(one.networks, taken=())).as_dict() for one in (self, recorded))
        here, there = ({name: values[name] for name in values if name not in FREE} for values in records)
        return differences(here.pop("identity"), there.pop("identity")) + differences(here, there)

    def against(self, setting: int) -> Other | None:
        """Return the decoder in the reference's place, with its settings for one of the decoder's."""
        other = self.terms.against
        return other and replace(other, settings=(other.settings[setting],))


def against_values(other: Other | None) -> dict[str, Any] | None:
    """Return the decoder that is judged against as JSON values; its factory is there by name."""
    return None if other is None else {"name": other.name, "settings": [vars(settings) for settings in other.settings]}


def against_of(values: Mapping[str, Any] | None) -> Other | None:
    """Return what `against_values` and JSON made these values of."""
    if values is None:
        return None
    return Other(str(values["name"]), tuple(record_of(Settings, each) for each in values["settings"]))
