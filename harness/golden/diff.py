"""Before and after: what a regeneration would change.

Promise: a case has changed if what is on disk no longer holds against this code; what rounding does on another machine
is no change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.golden.networks import networks
from harness.golden.result import CaseResult
from harness.golden.store import Recording
from harness.judge.compare import differences, largest_difference

UNKNOWN = float("nan")
FILE = "(file)"  # the id of a change that concerns a whole file


@dataclass(frozen=True)
class Change:
    """How one case changes.

    Args:
        id: of the case; `FILE` for a whole file.
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


def kind_of_change(planned: Mapping[str, Any], before: Recording, judged: CaseResult | None) -> str:
    """Return what has become of a case: "" for nothing but rounding.

    Args:
        planned: its settings, plain values.
        before: what is on disk.
        judged: the judgement on what is on disk; None = it was not judged, since its settings are others.
    """
    recorded = {case["id"]: case for case in before.cases}.get(planned["id"])
    if recorded is None:
        return "added"
    if recorded != planned:
        return "settings"
    assert judged is not None
    if any(defect.component == "form" for defect in judged.defects):
        return "form"
    return "values" if judged.defects else ""


def change(
    planned: Mapping[str, Any], models: str, what: str, new: dict[str, Tensor], old: dict[str, Tensor]
) -> Change:
    """Measure one change; `new` and `old` are the tensors of the case, by the name after its id."""
    if what == "added" or any(difference.kind != "value" for difference in differences(new, old)):
        return Change(planned["id"], what)
    pyramid = networks(dict(planned), models).pyramid
    positions = torch.nonzero(new["tokens"] != old["tokens"])[:, 1].tolist()
    first = pyramid.level_of(min(positions)) if positions else -1
    f_hat, image = (largest_difference(new[key], old[key]) for key in ("f_hat", "image"))
    return Change(planned["id"], what, first, len(positions), f_hat, image)
