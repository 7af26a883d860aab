"""Which goldens this project keeps. Promise: plain lists of cases; what a file holds beyond or short of them fails."""

from __future__ import annotations

from typing import Any

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
