"""What has become of a case: its kind of change, and how large it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.golden import plan
from harness.golden.judgements import CaseResult
from harness.golden.record import change, kind_of_change
from harness.golden.store import Recording, canonical, content_digest
from harness.judge.verdict import Divergence
from harness.protocol.request import Request

PLANNED: dict[str, Any] = next(
    json.loads(canonical((case,)))[0] for case in plan.cases("filled") if case["id"] == "phi-per-scale-plain"
)
FIRST_OF_SCALE_2 = sum(pn * pn for pn in PLANNED["patch_nums"][:2])


def of(*cases: dict[str, Any]) -> Recording:
    return Recording(Path("of-no-file"), {}, cases, {})


def result(*components: str) -> CaseResult:
    found = CaseResult(PLANNED["id"], Request((0,), 0))
    for component in components:
        found.defect(component, "by hand")
    return found


@pytest.mark.parametrize(
    ("components", "kind"),
    [((), ""), (("token",), "values"), (("form",), "form"), (("image", "f_hat"), "values")],
)
def test_one_defect_is_a_change_of_values_or_of_form(components: tuple[str, ...], kind: str):
    assert kind_of_change(PLANNED, of(PLANNED), result(*components)) == kind


def test_a_tie_is_no_change():
    tied = result()
    tied.ties.append(Divergence("tie", "by hand", 0))
    assert kind_of_change(PLANNED, of(PLANNED), tied) == ""


def test_a_case_that_is_not_there_is_added_and_one_of_other_settings_is_not_judged():
    other = {**PLANNED, "id": "another"}
    assert kind_of_change(PLANNED, of(other), None) == "added"
    assert kind_of_change(PLANNED, of(other, {**PLANNED, "cfg": PLANNED["cfg"] + 1}), None) == "settings"


def test_a_change_tells_the_first_scale_and_each_difference():
    old = {"tokens": torch.zeros(2, FIRST_OF_SCALE_2 + 9), "f_hat": torch.zeros(2, 3), "image": torch.zeros(4)}
    new = {name: tensor.clone() for name, tensor in old.items()}
    same = change(PLANNED, "filled", "values", new, old)
    assert (same.first_scale, same.tokens, same.f_hat, same.image) == (-1, 0, 0, 0)
    new["tokens"][0, -1] = new["tokens"][1, FIRST_OF_SCALE_2 - 1] = 1
    new["f_hat"][1, 2], new["image"][0] = -0.5, 0.25
    found = change(PLANNED, "filled", "values", new, old)
    assert (found.what, found.first_scale, found.tokens, found.f_hat, found.image) == ("values", 1, 2, 0.5, 0.25)
    for what, other in (
        ("added", old),
        ("form", {**old, "image": torch.zeros(5)}),
        ("form", {"tokens": old["tokens"]}),
    ):
        found = change(PLANNED, "filled", what, new, other)
        assert (found.what, found.first_scale, found.tokens) == (what, -1, 0)
        assert math.isnan(found.f_hat)
        assert math.isnan(found.image)


def test_a_digest_tells_names_dtypes_shapes_and_settings_apart_where_bytes_are_the_same():
    zeros = torch.zeros(2, 2, dtype=torch.int32)
    sets: list[dict[str, Tensor]] = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(torch.float32)}, {"a": zeros.view(4)}]
    digests = {content_digest(tensors) for tensors in sets}
    digests |= {content_digest({"a": zeros}, "with a text")}
    assert len(digests) == 5
    assert content_digest({"a": zeros}, "") in digests  # no text is the empty one
    path, tensors = Path("of-no-file"), {"one/tokens": zeros}
    one, other_reason, other_cfg = (
        Recording(path, {"reason": reason}, ({"id": "one", "cfg": cfg},), tensors).digest()
        for reason, cfg in (("first", 1.0), ("second", 1.0), ("first", 2.0))
    )
    assert one == other_reason
    assert one != other_cfg
