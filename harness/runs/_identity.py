"""What a run is of: the decoder's code, the weights, the machine and the versions.

Promise: two identities are equal exactly when a run may go on where the other one stopped; where they differ,
`differences` names it. The decoder's code is read and never executed here.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.adapters import PUBLISHED_PREFIX
from harness.decoders import Other
from harness.models import ModelPair, mode_name, pair_checksums
from harness.protocol import Settings
from harness.provenance import device_name, git_says, versions
from harness.rounding import precision
from harness.schema import record_of

PACKAGE = Path(__file__).parents[1]
MOST_FILES = 5000  # of a package whose digest is taken


@dataclass(frozen=True)
class CodeIdentity:
    """The code of a decoder."""

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
    """Where a run is made."""

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
    return Identity(
        code_of(decoder[0], decoder[1].option("checkout")),
        code_of(against.name, against.settings[0].option("checkout")) if against else None,
        {"source": _digest_of(PACKAGE)},
        weights_of(models),
        versions(),
        MachineIdentity(models.device.type, device_name(models.device)),
        {"dtype": mode_name(models.target), "draft_dtype": mode_name(models.draft), **precision()},
    )


def weights_of(models: ModelPair) -> dict[str, str]:
    """Return a digest of every network's weights; the same on every device."""
    digests = {side: hashlib.blake2b(digest_size=8) for side in ("draft", "target", "vae")}
    for name, checksum in sorted(pair_checksums(models).items()):
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
    """Return how messages call a decoder and the one that it is judged against: name, checkout and commit of each.

    `decoder` is the name of its factory, and settings that tell its checkout. Both names are empty where there is one
    decoder alone.
    """
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
    """List what differs, one clause a value; empty when nothing does."""
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
