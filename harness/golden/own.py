"""What this project's goldens must be. Promise: a missing, extra or stale file or entry is told by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.golden import plan
from harness.golden.digest import content_digest
from harness.golden.networks import networks
from harness.golden.result import FileResult
from harness.golden.store import Recording, canonical

DATA = Path(__file__).parent / "data"


def path_of(models: str, platform: str, folder: Path = DATA) -> Path:
    """Return where the goldens of one group of networks lie."""
    return folder / f"{plan.FILES[models]}-{platform}.safetensors"


def inventory(platform: str, folder: Path = DATA) -> tuple[list[Path], list[FileResult]]:
    """Compare the files that are there with those that must be.

    Args:
        platform: class whose goldens are asked for.
        folder: where they lie.

    Returns:
        The files to judge, and a finished judgement for each missing or extra one, or for an unknown platform.
    """
    if platform not in plan.PLATFORMS:
        return [], [FileResult(str(folder), unverified=f"no goldens were recorded on {platform}")]
    wanted = {path_of(models, name, folder): name for models in plan.FILES for name in plan.PLATFORMS}
    there = set(folder.glob("*")) if folder.is_dir() else set()
    wrong = [FileResult(str(p), defects=["golden is missing: restore or record it"]) for p in wanted if p not in there]
    wrong += [
        FileResult(str(path), defects=["golden is not in the plan: remove it, or plan it"])
        for path in sorted(there - wanted.keys())
    ]
    return sorted(path for path in there & wanted.keys() if wanted[path] == platform), wrong


def stale(recording: Recording) -> list[str]:
    """List in what an own file differs from the plan, from its own digest and from the weights of today."""
    models = recording.metadata.get("models", "")
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
    if not recording.metadata.get("reason", "").strip():
        found.append("provenance lacks the reason")
    return found


def weights_digest(models: str) -> str:
    """Return the digest of all weights that the planned cases of one file use."""
    pairs = {id(pair): pair for pair in (networks(case, models) for case in plan.cases(models))}
    tensors: dict[str, Tensor] = {}
    for number, pair in enumerate(pairs.values()):
        parts: dict[str, Any] = {"draft": pair.draft, "target": pair.target, "vae": pair.vae}
        for word, part in parts.items():
            tensors |= {f"{number}.{word}.{name}": tensor for name, tensor in part.weights.items()}
    return content_digest(tensors)
