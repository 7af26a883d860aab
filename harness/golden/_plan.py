"""Which goldens this project keeps, and what they must be.

Promise: plain lists of cases; a missing, extra or stale file or entry is reported by name.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from harness.errors import InputError
from harness.golden._cases import CPU, FileResult
from harness.golden._check import understood
from harness.golden._infinity import AnyStated, InfinityStated
from harness.golden._metadata import DrawSettings, GoldenCase, Recipe
from harness.golden._store import Recording, content_digest
from harness.models import ModelPair

FILES = {"digits": "golden-digits", "filled": "golden-tiny", "infinity": "golden-infinity"}
PLATFORMS = ("cpu", "cuda")  # classes of which goldens are recorded, every file
ALONE = {"infinity": "cpu"}  # what one class alone has

PLAIN, FILTERED, SMOOTH = (
    DrawSettings(100, 1.5), DrawSettings(101, 3.0, 7, 0.9), DrawSettings(102, 1.0, more_smooth=True),
)  # fmt: skip
MASKS = (("recorded", range(6)), ("corrected", range(1, 6)))  # `sd_mask` by mode of the hand-off

_SMALL = Recipe(
    (1, 2, 3, 4), V=32, C=8, phi="4 shared", vae_ch=32, vae_mult=(1, 2), depth=2, D=64, H=2, shared_adaln=True,
    l2_norm=True, classes=5, draft_depth=1, draft_D=32, draft_H=1,
)  # fmt: skip
_ONE_BLOCK = replace(_SMALL, depth=1, H=1, shared_adaln=False, classes=4)
NETWORKS = {
    "shared-adaln": _SMALL,
    "no-l2norm": replace(_SMALL, patch_nums=(1, 3, 5), H=1, shared_adaln=False, l2_norm=False, classes=3),
    "one-phi": replace(_ONE_BLOCK, patch_nums=(1, 2, 4, 6), phi="1 shared"),
    "phi-per-scale": replace(_ONE_BLOCK, patch_nums=(1, 2, 3, 5, 7), phi="one a scale"),
}

_PLAIN: dict[str, Any] = {
    "D": 32, "H": 2, "depth": 3, "block_chunks": 3, "mlp_ratio": 4.0, "d": 4, "dv": 4, "text_channels": 128,
    "text_maxlen": 6, "shared_aln": True, "cross_attn_layer_scale": -1.0, "nm0": False, "cos_attn": True,
    "head_depth": 1, "head_aln": True, "fused_norm": True, "rms_norm": False, "swiglu": False,
    "add_lvl_only_first_chunk": 1, "rope_normalized": 2, "patchify": 0, "scale_mul_offset": 0.0, "vae_ch": 32,
    "vae_mult": [1, 2], "vae_res_blocks": 1, "parameters": 100718, "vae_parameters": 622439,
}  # fmt: skip
_UNFUSED = _PLAIN | {"fused_norm": False, "rope_normalized": 0}
_PATCHIFY = _PLAIN | {"dv": 16, "patchify": 1, "parameters": 101894}
_OTHERS = _PLAIN | {
    "shared_aln": False, "cross_attn_layer_scale": 0.1, "nm0": True, "cos_attn": False, "head_depth": 2,
    "add_lvl_only_first_chunk": 0, "rope_normalized": 1, "parameters": 113968,
}  # fmt: skip
INFINITY = {"plain": _PLAIN, "patchify": _PATCHIFY, "others": _OTHERS, "unfused": _UNFUSED}
_INFINITY_CASE: dict[str, Any] = {
    "sampler": "sequential", "network": "plain", "schedule": [[1, 1], [2, 1], [3, 4], [4, 3]], "full_sides": [8, 6],
    "B": 1, "text_lens": [3], "negative_lens": None, "seed": 1, "cfg": [2.0, 1.0, 3.0, 2.0], "tau": [1, 0.5, 1, 0.7],
    "top_k": 0, "top_p": 0.0, "cfg_insertion_layer": [0], "gt_leak": 0, "bf16_cross_attention": False, "image": False,
}  # fmt: skip


def cases(models: str) -> tuple[AnyStated, ...]:
    """Return the cases of one file; `models` is one of `FILES`."""
    made: dict[str, Callable[[], Iterator[AnyStated]]] = {"digits": _digits, "filled": _tiny, "infinity": _infinity}
    return tuple(made[models]())


def files_of(platform: str) -> list[str]:
    """Return the groups of networks of which a platform class has a file."""
    return [models for models in FILES if ALONE.get(models, platform) == platform]


def planned_ids() -> list[str]:
    return [case.id for models in FILES for case in cases(models)]


def _digits() -> Iterator[GoldenCase]:
    target = GoldenCase("target", "sequential", (4,), PLAIN, model="target")
    yield replace(target, deep=True)
    yield replace(target, id="draft", model="draft", labels=(4, 10))
    yield replace(target, id="filtered", labels=(2,), drawing=FILTERED)
    yield replace(target, id="smooth", labels=(2,), drawing=SMOOTH)
    yield replace(target, id="drawn-labels", labels=None, count=2)
    yield replace(target, id="image-order", labels=(7,), order="image")
    yield from _handed(GoldenCase("", "test3", (4,), PLAIN), (1, 5, 9))
    speculative = GoldenCase("", "speculative", (4,), PLAIN)
    for draft_len in (1, 3, 5, 10):
        yield replace(speculative, id=f"speculative-{draft_len}", draft_len=draft_len, bonus=draft_len == 3)
    filtered = replace(speculative, labels=(4, 8), drawing=FILTERED, order="image")
    yield replace(filtered, id="speculative-filtered", draft_len=4, bonus=False)


def _tiny() -> Iterator[GoldenCase]:
    for word, recipe in NETWORKS.items():
        for name, drawing in (("plain", PLAIN), ("filtered", FILTERED), ("smooth", SMOOTH)):
            yield GoldenCase(f"{word}-{name}", "sequential", (0, 1), drawing, model="target", recipe=recipe)
        handed = GoldenCase(f"{word}-", "test3", (1,), PLAIN, recipe=recipe)
        yield from _handed(handed, range(len(recipe.patch_nums)))
        speculative = GoldenCase("", "speculative", (0, 1), PLAIN, recipe=recipe)
        for draft_len in (1, 2, 3):
            name = f"{word}-speculative-{draft_len}"
            yield replace(speculative, id=name, draft_len=draft_len, bonus=draft_len == 2)


def _infinity() -> Iterator[InfinityStated]:
    listed: list[dict[str, Any]] = [
        {"id": "plain", "image": True},
        {"id": "rounds", "bf16_cross_attention": True, "seed": 2},
        {"id": "hidden", "cfg_insertion_layer": [0, -2], "top_k": 900, "top_p": 0.9, "seed": 3},
        {"id": "negative", "B": 2, "text_lens": [2, 6], "negative_lens": [4, 1], "seed": 4},
        {"id": "forced", "network": "patchify", "gt_leak": 2, "seed": 5},
        {"id": "unguided", "network": "patchify", "cfg": [1.0] * 4, "top_k": 1, "seed": 6},
        {"id": "others", "network": "others", "cfg_insertion_layer": [-1], "seed": 7},
        {"id": "unfused", "network": "unfused", "seed": 8},
        {"id": "teacher", "sampler": "teacher", "network": "patchify", "seed": None},
    ]
    for values in listed:
        whole = _INFINITY_CASE | values
        yield InfinityStated(whole["id"], whole, INFINITY[whole["network"]])


def _handed(case: GoldenCase, entries: Iterable[int]) -> Iterator[GoldenCase]:
    """Yield a case of the hand-off under every mode, mask and entry; its id begins every one of theirs."""
    for mode, masks in MASKS:
        for sd_mask in masks:
            for entry in entries:
                name = f"{case.id}handoff-{mode}-mask{sd_mask}-entry{entry}"
                yield replace(case, id=name, entry_num=entry, sd_mask=sd_mask, mode=mode)


GOLDENS = Path(__file__).parent / "data"


def path_of(models: str, platform: str, folder: Path = GOLDENS) -> Path:
    return folder / f"{FILES[models]}-{platform}.safetensors"


def golden_inventory(platform: str, folder: Path = GOLDENS) -> tuple[list[Path], list[FileResult]]:
    """Return the files to judge, and a finished judgement for each missing or extra one, or for an unknown platform."""
    there = set(folder.glob("*"))
    if platform not in PLATFORMS:
        return [], [FileResult(str(folder), unverified=f"no goldens were recorded on {platform}")]
    wanted = {path_of(models, name, folder): name for name in PLATFORMS for models in files_of(name)}
    wrong = {path: "missing: restore or record it" for path in wanted if path not in there}
    wrong |= dict.fromkeys(sorted(there - wanted.keys()), "not in the plan: remove it, or plan it")
    results = [FileResult(str(path), defects=[f"golden is {why}"]) for path, why in wrong.items()]
    return sorted(path for path in there & wanted.keys() if wanted[path] == platform), results


def stale_entries(recording: Recording) -> list[str]:
    """List in what an own file differs from the plan, from its own digest and from the weights of today."""
    models = recording.metadata.get("models")
    if models not in FILES:
        return [f"models {models} are not in the plan"]
    expected, actual = ({case.id: case for case in listed} for listed in (cases(models), recording.cases))
    differences = [f"case {name} is missing" for name in sorted(expected.keys() - actual.keys())]
    differences += [f"case {name} is not in the plan" for name in sorted(actual.keys() - expected.keys())]
    differences += [
        f"case {name} is stale: its settings are not the plan's"
        for name in sorted(expected.keys() & actual.keys())
        if expected[name] != actual[name]
    ]
    file_name = path_of(models, recording.platform).name
    if recording.path.name != file_name:
        differences.append(f"file name must be {file_name} for {models} on {recording.platform}")
    if recording.metadata.get("digest") != recording.digest():
        differences.append("content digest differs: the file was changed by hand")
    if not differences and recording.metadata.get("weights") != weights_digest(models):
        differences.append("weights digest differs: recorded with other weights")
    groups = origins(recording, actual)
    if not all(group.reason.strip() for group in groups):
        differences.append("provenance lacks the reason")
    if sorted(name for group in groups for name in group.cases) != sorted(actual):
        differences.append("provenance must name the origin of every case once")
    return differences


@dataclass(frozen=True)
class Origin:
    cases: tuple[str, ...]  # ids
    reason: str  # why they were recorded
    commit: str  # that recorded them
    device_name: str  # of the machine
    versions: Mapping[str, str]  # of what made them

    @classmethod
    def from_values(cls, values: Any) -> Self:
        """Read one group of a file. Raises `KeyError` or `TypeError` for anything else."""
        cases = tuple(values["cases"])
        words = {word: str(values.get(word, "")) for word in ("reason", "commit", "device_name")}
        return cls(cases, **words, versions=values.get("versions", {}))


def origins(recording: Recording, names: Collection[str]) -> tuple[Origin, ...]:
    """Return where the named cases come from, in groups; one for all where a file states none. Raises `InputError`."""
    stated = recording.metadata.get("origins")
    try:
        versions = json.loads(recording.metadata.get("versions", "{}"))
        whole = {**recording.metadata, "versions": versions, "cases": [case.id for case in recording.cases]}
        groups = [Origin.from_values(group) for group in (json.loads(stated) if stated else [whole])]
        named = [replace(group, cases=tuple(name for name in group.cases if name in names)) for group in groups]
    except (ValueError, TypeError, KeyError):
        rule = "must state its origins as groups of cases"
        raise InputError("golden", str(recording.path), rule, "restore it from version control") from None
    return tuple(group for group in named if group.cases)


def pairs_of(models: str, device: torch.device = CPU) -> list[ModelPair]:
    return list(dict.fromkeys(understood(case, models, device).models for case in cases(models)))


def weights_digest(models: str) -> str:
    """Return the digest of all weights that the planned cases of one file use."""
    weights = [pair.named_weights() for pair in pairs_of(models)]
    return content_digest({f"{k}.{name}": tensor for k, named in enumerate(weights) for name, tensor in named.items()})
