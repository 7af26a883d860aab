"""Before and after: what a regeneration would change. Promise: every case that differs in any tensor is listed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.golden.networks import networks
from harness.golden.record import Fresh
from harness.golden.store import Recording
from harness.judge.compare import differences, largest_difference
from harness.protocol.pyramid import ScalePyramid

UNKNOWN = float("nan")


@dataclass(frozen=True)
class Change:
    """How one case changes.

    Args:
        id: of the case.
        what: added, removed, settings, form (other tensors, shapes or dtypes), values; of a whole file: weights,
            changed by hand.
        first_scale: of the first token that changes; -1: no token does.
        tokens: how many change.
        f_hat: largest difference; NaN where not compared.
        image: largest difference; NaN where not compared.
    """

    id: str
    what: str
    first_scale: int = -1
    tokens: int = 0
    f_hat: float = UNKNOWN
    image: float = UNKNOWN


def changes(before: Recording | None, after: Fresh) -> list[Change]:
    """List the cases that change.

    Args:
        before: what is on disk; None = nothing.
        after: what this code makes.
    """
    old_cases = {case["id"]: case for case in (before.cases if before else ())}
    new_cases = {case["id"]: case for case in after.cases}
    found = [Change(name, "removed") for name in sorted(old_cases.keys() - new_cases.keys())]
    found += [Change(name, "added") for name in sorted(new_cases.keys() - old_cases.keys())]
    for name in sorted(old_cases.keys() & new_cases.keys()):
        assert before is not None
        old = before.of(name)
        new = {key.removeprefix(f"{name}/"): t for key, t in after.tensors.items() if key.startswith(f"{name}/")}
        different = differences(new, old)
        if any(difference.kind != "value" for difference in different):
            found.append(Change(name, "form"))
        elif different:
            found.append(_values(name, new, old, networks(new_cases[name], after.models).pyramid))
        elif old_cases[name] != new_cases[name]:
            found.append(Change(name, "settings"))
    if before is not None and before.metadata.get("weights") != after.weights:
        found.append(Change("all cases", "weights"))
    if before is not None and before.metadata.get("digest") != before.digest():
        found.append(Change("all cases", "changed by hand"))
    return found


def _values(name: str, new: dict[str, Tensor], old: dict[str, Tensor], pyramid: ScalePyramid) -> Change:
    positions = torch.nonzero(new["tokens"] != old["tokens"])[:, 1].tolist()
    first = pyramid.level_of(min(positions)) if positions else -1
    f_hat, image = (largest_difference(new[key], old[key]) for key in ("f_hat", "image"))
    return Change(name, "values", first, len(positions), f_hat, image)
