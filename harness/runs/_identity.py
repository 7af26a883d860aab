"""What a run says of itself when it begins: the decoder's code, weights, machine, versions, and all that repeats it.

Promise: two identities are equal exactly when a run may go on where the other one stopped; where they differ,
`differences` names it. The decoder's code is read and never executed here. What is read from JSON is equal to what was
written (docs/runs.md names the keys); values of another form are a `KeyError`, `TypeError` or `ValueError`, which
whoever reads a file makes one line of.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from harness.adapters import PUBLISHED_PREFIX
from harness.decoders import Other, Terms
from harness.models import MODES, ModelPair, checksums, mode_name
from harness.protocol import Contract, ScalePyramid, Settings
from harness.provenance import device_name, git_says, versions
from harness.rounding import Budget, precision
from harness.schema import record_of

# Who counts: of the harness's own decoder and of published code, whose passes an adapter sees, the harness does; what
# another decoder states is its word, which nothing confirms.
HARNESS, DECODER = "harness", "decoder"
# of the terms, those that are JSON values
PLAIN = ("sequential", "in_process", "covers", "unasked", "strict", "may_differ_from")
# May differ between two parts of a run: file names, the number of workers, the system of the machine.
FREE = ("command", "recipe", "isolation")
ONCE_KNOWN = ("workers", "certifying", "isolation", "declines")  # names of `RunHeader` that stay away while empty
PACKAGE = Path(__file__).parents[1]
MOST_FILES = 5000  # of a package whose digest is taken


@dataclass(frozen=True)
class CodeIdentity:
    implementation: str  # name of its factory
    source: str = ""  # digest of its Python files; empty where nobody finds them
    commit: str = ""  # of the repository that they lie in; empty where there is none
    changed: bool = False  # whether files differ from that commit
    checkout: str = ""  # folder of published code, as it was given

    @property
    def title(self) -> str:
        """Name, folder and commit, for messages."""
        place = f" of {Path(self.checkout).name}" if self.checkout else ""
        changed = ", changed" if self.changed else ""
        return f"{self.implementation}{place}" + (f" at {self.commit[:7]}{changed}" if self.commit else "")


@dataclass(frozen=True)
class MachineIdentity:
    device: str  # type of the device
    name: str  # its model


@dataclass(frozen=True)
class Identity:
    """What a run is of, part by part."""

    decoder: CodeIdentity  # the code under test
    against: CodeIdentity | None  # that in the reference's place; None = the reference
    harness: dict[str, str]  # a digest of its source
    weights: dict[str, str]  # a digest of every network
    versions: dict[str, str]  # of what decides a result
    machine: MachineIdentity
    mode: dict[str, str | bool]  # dtypes and settings of precision

    def as_dict(self) -> dict[str, Mapping[str, object]]:
        """Return it as JSON values, part by part."""
        return {name: part or {} for name, part in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Identity:
        """Return what `as_dict` and JSON made these values of. Raises `KeyError` or `TypeError` for others."""
        return record_of(cls, {**values, "against": values["against"] or None})

    def differences(self, recorded: Identity, parts: Sequence[str]) -> list[str]:
        """List what differs from a recorded one in some parts of `as_dict`, one clause a value."""
        here, there = ({part: side.as_dict()[part] for part in parts} for side in (self, recorded))
        return differences(here, there)


def identity_of(models: ModelPair, decoder: tuple[str, Settings], against: Other | None = None) -> Identity:
    """Return what a run in this process is of; `decoder`: its factory's name, and settings that tell its checkout."""
    other = code_of(against.name, against.settings[0].option("checkout")) if against else None
    return Identity(
        code_of(decoder[0], decoder[1].option("checkout")), other, {"source": _digest_of(PACKAGE)}, weights_of(models),
        versions(), MachineIdentity(models.device.type, device_name(models.device)),
        {"dtype": mode_name(models.target), "draft_dtype": mode_name(models.draft), **precision()},
    )  # fmt: skip


def weights_of(models: ModelPair) -> dict[str, str]:
    """Return a digest of every network's weights; the same on every device."""
    digests = {side: hashlib.blake2b(digest_size=8) for side in ("draft", "target", "vae")}
    for name, checksum in sorted(checksums(models.named_weights()).items()):
        digests[name.partition(".")[0]].update(f"{name} {checksum};".encode())
    return {side: digest.hexdigest() for side, digest in digests.items()}


def code_of(implementation: str, checkout: str = "") -> CodeIdentity:
    """Return what the code of a decoder, and its checkout, is; of a factory that nobody finds its name alone."""
    places = _places(implementation, checkout)
    if not places:
        return CodeIdentity(implementation, checkout=checkout)
    last = places[-1]
    folder, sources = (last, ":(glob)**/*.py") if last.is_dir() else (last.parent, last.name)  # no __pycache__
    commit = _git(folder, "rev-parse", "HEAD")
    changed = bool(_git(folder, "status", "--porcelain", "--ignore-submodules=all", "--", sources)) if commit else False
    return CodeIdentity(implementation, "+".join(map(_digest_of, places)), commit, changed, checkout)


def source_files(implementation: str, checkout: str = "") -> list[tuple[str, Path]]:
    """Return the Python files of a decoder's code, and of its checkout: what a digest calls each, and where it is."""
    return [
        (f"{place.stem}/{name}" if place.is_dir() else name, path)
        for place in _places(implementation, checkout)
        for name, path in _files_of(place)
    ]


def _places(implementation: str, checkout: str) -> list[Path]:
    """Return where the code of a decoder lies: the top of its factory's module, and its checkout."""
    module = _place(implementation.partition(":")[0]) if not implementation.startswith(f"{PUBLISHED_PREFIX}:") else None
    return [place for place in (module, Path(checkout) if checkout else None) if place is not None]


def names_of(decoder: tuple[str, Settings], against: Other | None) -> tuple[str, str]:
    """Return how messages call a decoder (factory, settings) and the one it is judged against; empty without one."""
    if against is None:
        return "", ""
    sides = (decoder, (against.name, against.settings[0]))
    tested, other = (code_of(name, settings.option("checkout")).title for name, settings in sides)
    return tested, other


def _place(module: str) -> Path | None:
    """Return the file or folder of the top of a dotted name, without importing it."""
    top = module.partition(".")[0]
    paths = [path or str(Path.cwd()) for path in sys.path]
    try:
        spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd()), *paths]) if top else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    locations = spec.submodule_search_locations
    where = next(iter(locations), None) if locations else spec.origin
    return Path(where) if where and Path(where).exists() else None


def _digest_of(place: Path) -> str:
    """Return a digest of a Python file, or of every Python file of a folder; of the first `MOST_FILES` at most."""
    digest = hashlib.blake2b(digest_size=8)
    for name, path in _files_of(place):
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files_of(place: Path) -> list[tuple[str, Path]]:
    if place.is_file():
        return [(place.name, place)]
    return [(path.relative_to(place).as_posix(), path) for path in sorted(place.rglob("*.py"))[:MOST_FILES]]


def _git(folder: Path, *words: str) -> str:
    """Return what git says; nothing where there is no git, no repository, or no answer in time."""
    try:
        return git_says(folder, *words)
    except (OSError, subprocess.SubprocessError):
        return ""


def differences(here: Mapping[str, object], recorded: Mapping[str, object]) -> list[str]:
    clauses = []
    for part in (*here, *(recorded.keys() - here.keys())):
        mine, other = here.get(part), recorded.get(part)
        if not isinstance(mine, Mapping) or not isinstance(other, Mapping):
            clauses += [f"{part} (here {mine}, recorded {other})"] if mine != other else []
            continue
        for name in sorted(mine.keys() | other.keys()):
            if mine.get(name) != other.get(name):
                clauses.append(f"{part} {name} (here {_word(mine.get(name))}, recorded {_word(other.get(name))})")
    return clauses


def _word(value: object) -> str:
    return str(value) if value not in ("", None) else "unknown"


@dataclass(frozen=True)
class NetworksUsed:
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
        return cls(models.title, where, target, draft, *shape, bool(getattr(config, "shared_adaln", False)))

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
        """Return it as JSON values; of `ONCE_KNOWN` what there is."""
        terms, values = self.terms, dict(vars(self))
        values |= {
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
            "recipe": None if self.recipe is None else dict(self.recipe),
            "declines": [list(words) for words in self.declines] if any(self.declines) else [],
        }
        return {name: value for name, value in values.items() if value or name not in ONCE_KNOWN}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunHeader:
        """Return what `as_dict` and JSON made these values of, among others by other names."""
        terms = {"strict": False, "may_differ_from": None, **values["terms"]}
        judged = {name: terms[name] for name in (*PLAIN, "limits", "against")}
        judged["contract"] = Contract.of(terms["contract"]) if terms["contract"] else None
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
