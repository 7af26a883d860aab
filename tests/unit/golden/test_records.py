"""What the golden check notes, and which batches it refuses before memory is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.errors import InputError
from harness.golden import limits
from harness.golden.result import CaseResult
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request
from tests.helpers import Layout, transformer_config


def test_a_defect_of_a_case_keeps_its_seed_and_scale():
    result = CaseResult("one", Request((0,), 7))
    result.defect("f_hat", "why", 2)
    result.defect("counts", "why not")
    found = [(d.component, d.detail, d.seed, d.scale) for d in result.defects]
    assert found == [("f_hat", "why", 7, 2), ("counts", "why not", 7, -1)]


@pytest.mark.parametrize(
    ("change", "downsampling", "numbers"),
    [({"V": 1000}, 1, 2 * 14 * 1000), ({"H": 100}, 1, 2 * 100 * 14**2), ({}, 64, 3 * (3 * 64) ** 2)],
)
def test_a_batch_is_refused_by_its_largest_tensor(
    change: dict[str, int], downsampling: int, numbers: int, monkeypatch: pytest.MonkeyPatch
):
    pyramid, config = ScalePyramid((1, 2, 3)), replace(transformer_config(Layout()), **change)
    monkeypatch.setattr(limits, "MOST_NUMBERS", 5 * numbers)
    limits.check_batch(5, pyramid, config, downsampling)
    with pytest.raises(InputError, match=rf"images=6.*at most {5 * numbers} numbers, not {6 * numbers}"):
        limits.check_batch(6, pyramid, config, downsampling)
