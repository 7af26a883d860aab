"""What this project's goldens must be. Promise: a missing, extra or stale file or entry is told by name."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.errors import InputError
from harness.golden import plan
from harness.golden.digest import content_digest
from harness.golden.networks import networks
from harness.golden.result import FileResult
from harness.golden.store import Recording, canonical

DATA = Path(__file__).parent / "data"


def path_of(models: str, platform: str, folder: Path = DATA) -> Path:
    """Return where the goldens of one group of networks lie."""
    return folder / f"{plan.FILES[models]}-{platform}.safetensors"


def _paths(platform: str, folder: Path) -> list[Path]:
    return [path_of(models, platform, folder) for models in plan.FILES]


def inventory(platform: str, folder: Path = DATA) -> tuple[list[Path], list[FileResult]]:
    """Compare the files that are there with those that must be.

    Args:
        platform: class whose goldens are asked for.
        folder: where they lie.

    Returns:
        The files to judge, and a finished judgement for each missing or extra one, or for an unknown platform.
    """
    there = set(folder.glob("*"))
    platforms = [name for name in plan.PLATFORMS if name in plan.KEPT or there & set(_paths(name, folder))]
    if platform not in platforms:
        return [], [FileResult(str(folder), unverified=f"no goldens were recorded on {platform}")]
    wanted = {path: name for name in platforms for path in _paths(name, folder)}
    wrong = [FileResult(str(p), defects=["golden is missing: restore or record it"]) for p in wanted if p not in there]
    wrong += [
        FileResult(str(path), defects=["golden is not in the plan: remove it, or plan it"])
        for path in sorted(there - wanted.keys())
    ]
    return sorted(path for path in there & wanted.keys() if wanted[path] == platform), wrong


def stale(recording: Recording) -> list[str]:
    """List in what an own file differs from the plan, from its own digest and from the weights of today."""
    models = recording.metadata.get("models")
    if models not in plan.FILES:
        return [f"models {models} are not in the plan"]
    expected = {case["id"]: json.loads(canonical((case,))) for case in plan.cases(models)}
    actual = {case["id"]: [case] for case in recording.cases}
    found = [f"case {name} is missing" for name in sorted(expected.keys() - actual.keys())]
    found += [f"case {name} is not in the plan" for name in sorted(actual.keys() - expected.keys())]
    both = sorted(expected.keys() & actual.keys())
    found += [
        f"case {name} is stale: its settings are not the plan's" for name in both if expected[name] != actual[name]
    ]
    name = path_of(models, recording.platform).name
    if recording.path.name != name:
        found.append(f"file name must be {name} for {models} on {recording.platform}")
    if recording.metadata.get("digest") != recording.digest():
        found.append("content digest differs: the file was changed by hand")
    if not found and recording.metadata.get("weights") != weights_digest(models):
        found.append("weights digest differs: recorded with other weights")
    whence = origins(recording, actual)
    if not all(str(origin.get("reason", "")).strip() for origin in whence):
        found.append("provenance lacks the reason")
    told = [name for origin in whence for name in origin["cases"]]
    if sorted(told) != sorted(actual):
        found.append("provenance must name the origin of every case once")
    return found


def origins(recording: Recording, names: Collection[str]) -> tuple[dict[str, Any], ...]:
    """Return where some cases come from: groups of cases with versions, device_name, commit and reason.

    Args:
        recording: an own file; one that was written in one go states its origin for the whole file.
        names: of the cases.

    Raises:
        InputError: what it states is no list of groups of cases.
    """
    stated = recording.metadata.get("origins")
    whole = {key: recording.metadata.get(key, "") for key in ("device_name", "commit", "reason")}
    try:
        whole |= {"versions": json.loads(recording.metadata.get("versions", "{}"))}
        groups = json.loads(stated) if stated else [{**whole, "cases": [case["id"] for case in recording.cases]}]
        kept = [{**group, "cases": [name for name in group["cases"] if name in names]} for group in groups]
    except (ValueError, TypeError, KeyError):
        rule = "must state its origins as groups of cases"
        raise InputError("golden", str(recording.path), rule, "restore it from version control") from None
    return tuple(group for group in kept if group["cases"])


def weights_digest(models: str) -> str:
    """Return the digest of all weights that the planned cases of one file use."""
    pairs = {id(pair): pair for pair in (networks(case, models) for case in plan.cases(models))}
    tensors: dict[str, Tensor] = {}
    for number, pair in enumerate(pairs.values()):
        parts: dict[str, Any] = {"draft": pair.draft, "target": pair.target, "vae": pair.vae}
        for word, part in parts.items():
            tensors |= {f"{number}.{word}.{name}": tensor for name, tensor in part.weights.items()}
    return content_digest(tensors)
