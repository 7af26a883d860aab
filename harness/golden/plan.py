"""Which goldens this project keeps, and what they must be.

Promise: plain lists of cases; a missing, extra or stale file or entry is reported by name.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.errors import InputError
from harness.golden.cases import networks
from harness.golden.judgements import FileResult
from harness.golden.store import Recording, canonical, content_digest

FILES = {"digits": "golden-digits", "filled": "golden-tiny"}
PLATFORMS = ("cpu", "cuda")  # classes of which goldens can be recorded
KEPT = ("cpu", "cuda")  # those of which every file must be there; of another, all files or none

PLAIN: dict[str, Any] = {"seed": 100, "cfg": 1.5, "top_k": 0, "top_p": 0.0, "more_smooth": False}
FILTERED: dict[str, Any] = {"seed": 101, "cfg": 3.0, "top_k": 7, "top_p": 0.9, "more_smooth": False}
SMOOTH: dict[str, Any] = {"seed": 102, "cfg": 1.0, "top_k": 0, "top_p": 0.0, "more_smooth": True}
MASKS = (("recorded", range(6)), ("corrected", range(1, 6)))  # `sd_mask` by mode of the hand-off

_COMMON = {"C": 8, "vae_ch": 32, "vae_mult": [1, 2], "V": 32, "D": 64, "draft_D": 32, "draft_depth": 1, "draft_H": 1}
NETWORKS: dict[str, dict[str, Any]] = {
    "shared-adaln": {"patch_nums": [1, 2, 3, 4], "phi": "4 shared", "depth": 2, "H": 2, "shared_adaln": True,
                     "l2_norm": True, "classes": 5},
    "no-l2norm": {"patch_nums": [1, 3, 5], "phi": "4 shared", "depth": 2, "H": 1, "shared_adaln": False,
                  "l2_norm": False, "classes": 3},
    "one-phi": {"patch_nums": [1, 2, 4, 6], "phi": "1 shared", "depth": 1, "H": 1, "shared_adaln": False,
                "l2_norm": True, "classes": 4},
    "phi-per-scale": {"patch_nums": [1, 2, 3, 5, 7], "phi": "one a scale", "depth": 1, "H": 1, "shared_adaln": False,
                      "l2_norm": True, "classes": 4},
}  # fmt: skip


def cases(models: str) -> tuple[dict[str, Any], ...]:
    """Return the cases of one file; `models` is "digits" or "filled"."""
    return tuple({"digits": _digits, "filled": _tiny}[models]())


def _digits() -> list[dict[str, Any]]:
    found = [
        {"id": "target", "sampler": "sequential", "model": "target", "labels": [4], "deep": True, **PLAIN},
        {"id": "draft", "sampler": "sequential", "model": "draft", "labels": [4, 10], **PLAIN},
        {"id": "filtered", "sampler": "sequential", "model": "target", "labels": [2], **FILTERED},
        {"id": "smooth", "sampler": "sequential", "model": "target", "labels": [2], **SMOOTH},
        {"id": "drawn-labels", "sampler": "sequential", "model": "target", "labels": None, "count": 2, **PLAIN},
        {"id": "image-order", "sampler": "sequential", "model": "target", "labels": [7], "order": "image", **PLAIN},
    ]
    for mode, masks in MASKS:
        for sd_mask in masks:
            for entry in (1, 5, 9):
                where = {"entry_num": entry, "sd_mask": sd_mask, "mode": mode}
                name = f"handoff-{mode}-mask{sd_mask}-entry{entry}"
                found.append({"id": name, "sampler": "test3", "labels": [4], **where, **PLAIN})
    for draft_len in (1, 3, 5, 10):
        how: dict[str, Any] = {"draft_len": draft_len, "bonus": draft_len == 3}
        found.append({"id": f"speculative-{draft_len}", "sampler": "speculative", "labels": [4], **how, **PLAIN})
    how = {"draft_len": 4, "bonus": False, "order": "image"}
    found.append({"id": "speculative-filtered", "sampler": "speculative", "labels": [4, 8], **how, **FILTERED})
    return found


def _tiny() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for word, sizes in NETWORKS.items():
        network = {**_COMMON, **sizes}
        for name, setting in (("plain", PLAIN), ("filtered", FILTERED), ("smooth", SMOOTH)):
            case = {"id": f"{word}-{name}", "sampler": "sequential", "model": "target", "labels": [0, 1]}
            found.append({**case, **network, **setting})
        for mode, masks in MASKS:
            for sd_mask in masks:
                for entry in range(len(sizes["patch_nums"])):
                    where = {"entry_num": entry, "sd_mask": sd_mask, "mode": mode}
                    name = f"{word}-handoff-{mode}-mask{sd_mask}-entry{entry}"
                    found.append({"id": name, "sampler": "test3", "labels": [1], **where, **network, **PLAIN})
        for draft_len in (1, 2, 3):
            how = {"draft_len": draft_len, "bonus": draft_len == 2}
            name = f"{word}-speculative-{draft_len}"
            found.append({"id": name, "sampler": "speculative", "labels": [0, 1], **how, **network, **PLAIN})
    return found


DATA = Path(__file__).parent / "data"


def path_of(models: str, platform: str, folder: Path = DATA) -> Path:
    """Return where the goldens of one group of networks lie."""
    return folder / f"{FILES[models]}-{platform}.safetensors"


def _paths(platform: str, folder: Path) -> list[Path]:
    return [path_of(models, platform, folder) for models in FILES]


def inventory(platform: str, folder: Path = DATA) -> tuple[list[Path], list[FileResult]]:
    """Compare the files that are there with those that must be.

    Args:
        platform: class whose goldens are asked for.
        folder: where they lie.

    Returns:
        The files to judge, and a finished judgement for each missing or extra one, or for an unknown platform.
    """
    there = set(folder.glob("*"))
    platforms = [name for name in PLATFORMS if name in KEPT or there & set(_paths(name, folder))]
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
    if models not in FILES:
        return [f"models {models} are not in the plan"]
    expected = {case["id"]: json.loads(canonical((case,))) for case in cases(models)}
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
    pairs = {id(pair): pair for pair in (networks(case, models) for case in cases(models))}
    tensors: dict[str, Tensor] = {}
    for number, pair in enumerate(pairs.values()):
        parts: dict[str, Any] = {"draft": pair.draft, "target": pair.target, "vae": pair.vae}
        for word, part in parts.items():
            tensors |= {f"{number}.{word}.{name}": tensor for name, tensor in part.weights.items()}
    return content_digest(tensors)
