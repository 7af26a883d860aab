"""Before and after: what a regeneration would change. Promise: every case that differs in any tensor is listed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.compare import differences, largest_difference
from harness.golden.record import Fresh
from harness.golden.store import Recording
from harness.pyramid import ScalePyramid


@dataclass(frozen=True)
class Change:
    """How one case changes; `what` is added, removed, settings or tensors."""

    id: str
    what: str
    first_scale: int = -1  # of the first token that changes; -1: no token does
    tokens: int = 0
    f_hat: float = float("nan")
    image: float = float("nan")


def changes(before: Recording | None, after: Fresh, pyramids: dict[str, ScalePyramid]) -> list[Change]:
    """List the cases that change.

    Args:
        before: what is on disk; None = nothing.
        after: what this code makes.
        pyramids: of every case of `after`.
    """
    old_cases = {case["id"]: case for case in (before.cases if before else ())}
    new_cases = {case["id"]: case for case in after.cases}
    found = [Change(name, "removed") for name in old_cases.keys() - new_cases.keys()]
    found += [Change(name, "added") for name in new_cases.keys() - old_cases.keys()]
    for name in old_cases.keys() & new_cases.keys():
        assert before is not None
        prefix = f"{name}/"
        old = before.of(name)
        new = {key.removeprefix(prefix): t for key, t in after.tensors.items() if key.startswith(prefix)}
        if differences(new, old):
            found.append(_change(name, new, old, pyramids[name]))
        elif old_cases[name] != new_cases[name]:
            found.append(Change(name, "settings"))
    return sorted(found, key=lambda change: change.id)


def _change(name: str, new: dict[str, Tensor], old: dict[str, Tensor], pyramid: ScalePyramid) -> Change:
    if any(key not in old or new[key].shape != old[key].shape for key in ("tokens", "f_hat", "image")):
        return Change(name, "tensors")
    positions = torch.nonzero(new["tokens"] != old["tokens"])[:, 1].tolist()
    first = pyramid.level_of(min(positions)) if positions else -1
    f_hat, image = (largest_difference(new[key], old[key]) for key in ("f_hat", "image"))
    return Change(name, "tensors", first, len(positions), f_hat, image)
