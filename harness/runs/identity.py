"""What a run is of: the decoder's code, the weights, the machine and the versions, as plain values to compare.

Promise: two identities are equal exactly when a run may go on where the other one stopped; where they differ,
`differences` names it. The decoder's code is read and never executed here.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.adapters.factories import PREFIX
from harness.decoders.terms import Other
from harness.models.pair import ModelPair, pair_checksums
from harness.protocol.decoder import Settings
from harness.provenance import device_name, versions
from harness.rounding.precision import precision

PACKAGE = Path(__file__).parents[1]
MOST_FILES = 5000  # of a package whose digest is taken
GIT_S = 10.0
Identity = dict[str, Any]


def identity_of(models: ModelPair, decoder: tuple[str, Settings], against: Other | None = None) -> Identity:
    """Return what a run of a decoder on these networks, in this process's mode, is of.

    Args:
        models: on their device.
        decoder: name of its factory, and settings that tell its checkout, if it has one.
        against: the decoder that stands in the reference's place.
    """
    device = models.device
    return {
        "decoder": code_of(decoder[0], decoder[1].option("checkout")),
        "against": code_of(against.name, against.settings[0].option("checkout")) if against else {},
        "harness": {"source": digest_of(PACKAGE)},
        "weights": weights_of(models),
        "versions": versions(),
        "machine": {"device": device.type, "name": device_name(device)},
        "mode": {
            "dtype": str(models.target.dtype).removeprefix("torch."),
            "draft_dtype": str(models.draft.dtype).removeprefix("torch."),
            **precision(),
        },
    }


def weights_of(models: ModelPair) -> dict[str, str]:
    """Return a digest of every network's weights; the same on every device."""
    digests = {side: hashlib.blake2b(digest_size=8) for side in ("draft", "target", "vae")}
    for name, checksum in sorted(pair_checksums(models).items()):
        digests[name.partition(".")[0]].update(f"{name} {checksum};".encode())
    return {side: digest.hexdigest() for side, digest in digests.items()}


def code_of(implementation: str, checkout: str = "") -> dict[str, Any]:
    """Return name, digest of the source, commit of its repository, and whether files differ from that commit.

    Args:
        implementation: ``package.module:factory``; of a name that nobody finds nothing but the name is known.
        checkout: folder of the code that the factory puts under test, which is part of the source; its commit counts.
    """
    found: dict[str, Any] = {"implementation": implementation, "source": "", "commit": "", "changed": False}
    found["checkout"] = checkout
    module = _place(implementation.partition(":")[0]) if not implementation.startswith(f"{PREFIX}:") else None
    places = [place for place in (module, Path(checkout) if checkout else None) if place is not None]
    if not places:
        return found
    last = places[-1]
    folder, sources = (last, ":(glob)**/*.py") if last.is_dir() else (last.parent, last.name)  # no __pycache__
    commit = _git(folder, "rev-parse", "HEAD")
    changed = bool(_git(folder, "status", "--porcelain", "--", sources)) if commit else False
    return {**found, "source": "+".join(map(digest_of, places)), "commit": commit, "changed": changed}


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


def digest_of(place: Path) -> str:
    """Return a digest of a Python file, or of every Python file of a folder; of the first `MOST_FILES` at most."""
    digest = hashlib.blake2b(digest_size=8)
    for name, path in _sources(place):
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources(place: Path) -> Iterator[tuple[str, Path]]:
    if place.is_file():
        yield place.name, place
        return
    for path in sorted(place.rglob("*.py"))[:MOST_FILES]:
        yield path.relative_to(place).as_posix(), path


def _git(folder: Path, *words: str) -> str:
    """Return what git says; nothing where there is no git, no repository, or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def differences(here: Mapping[str, Any], there: Mapping[str, Any], without: tuple[str, ...] = ()) -> list[str]:
    """List what differs, one clause a value; empty when nothing does.

    Args:
        here: an identity.
        there: the recorded one.
        without: parts that do not matter.
    """
    found = []
    for part in [name for name in (*here, *(there.keys() - here.keys())) if name not in without]:
        mine, other = here.get(part), there.get(part)
        if not isinstance(mine, Mapping) or not isinstance(other, Mapping):
            found += [f"{part} (here {mine}, recorded {other})"] if mine != other else []
            continue
        for name in sorted(mine.keys() | other.keys()):
            if mine.get(name) != other.get(name):
                found.append(f"{part} {name} (here {_word(mine.get(name))}, recorded {_word(other.get(name))})")
    return found


def _word(value: Any) -> str:
    return str(value) if value not in ("", None) else "unknown"
