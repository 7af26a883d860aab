"""A wrong tensor names its component, and rounding names none."""

from __future__ import annotations

import pytest
import torch

from harness.judge.components import wrong_at
from harness.judge.evidence import Evidence
from harness.protocol.request import Request
from harness.reference import sequential
from harness.rounding.budget import Budget
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
BUDGET = Budget(1e-3, 1e-4, 1e-5, "by hand")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("si", "cfg"), [(0, 4.0), (1, 1.0), (2, 4.0)])
def test_the_textbook_form_of_guidance_is_rounding_and_no_defect(si: int, cfg: float, dtype: torch.dtype):
    request = Request((0,), cfg=cfg)
    trace = sequential.sample(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    rows_RLV = torch.randn(trace.intermediates.rows_RLV.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    rows_RLV[1] *= 100  # where c is small beside u, u + (c - u) is not c
    trace.intermediates.rows_RLV = rows_RLV
    conditional_LV, unconditional_LV = rows_RLV
    t = cfg * MODELS.pyramid.ramp(si)
    assert t == (0.0, 0.5, 4.0)[si]

    def judged(guided_LV: torch.Tensor) -> tuple[str, str] | None:
        trace.intermediates.guided_BLV = guided_LV[None]
        evidence = Evidence(MODELS, request, trace, trace, BUDGET)
        return wrong_at(evidence, trace.intermediates, trace.intermediates, 0, si)

    assert judged(unconditional_LV + (1 + t) * (conditional_LV - unconditional_LV)) is None
    off = t * (1 + 1e-4) if t else 1e-6
    for guided_LV, why in (
        ((1 + off) * conditional_LV - off * unconditional_LV, "weight or halves"),
        ((1 + t) * unconditional_LV - t * conditional_LV, "unconditional half first"),
    ):
        component, detail = judged(guided_LV)
        assert (component, detail.partition(": ")[2]) == ("guidance", why)
