"""The measurement: once a mode, on the reference alone, and tight where few windows are measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.errors import NonFiniteError
from harness.protocol.request import Request
from harness.rounding import measure
from harness.rounding.measure import Errors, errors, quick, windows
from harness.rounding.stored import MARGIN
from tests.helpers import LAYOUTS, Layout, digits, tiny, with_weight

FRESH = [Request((0, 1, 2), seed, cfg) for seed, cfg in ((50, 0.0), (51, 4.0), (52, 1.5))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYOUTS)
def test_few_windows_cover_every_window_of_fresh_images_and_are_near(name: str, dtype: torch.dtype):
    models = tiny(LAYOUTS[name]).to("cpu", dtype)
    budget, fresh = quick(models), [errors(models, request) for request in FRESH]
    for word in ("rows", "rows_rms", "f_hat"):
        met = max(getattr(batch, word) for batch in fresh)
        assert getattr(budget, word) / (4 * MARGIN) < met < getattr(budget, word), word


def test_few_windows_cover_every_window_of_the_digits():
    budget, fresh = quick(digits()), errors(digits(), Request((4,), 90, 4.0))
    for word in ("rows", "rows_rms", "f_hat"):
        assert getattr(budget, word) / (4 * MARGIN) < getattr(fresh, word) < 0.8 * getattr(budget, word), word


@pytest.mark.parametrize(("every", "expected"), [(True, 10), (False, 5)])
def test_the_stated_windows_are_measured(every: bool, expected: int):
    models = tiny(Layout((1, 2, 3, 4)))
    labels_B, tokens_BL = torch.tensor([0]), torch.zeros(1, models.pyramid.L, dtype=torch.int64)
    found = [(first, rows.shape[1]) for first, rows in windows(models, labels_B, tokens_BL, every)]
    assert len(found) == len(set(found)) == expected
    assert (0, models.pyramid.L) in found
    assert {(si, models.pyramid.tokens(si)) for si in models.pyramid} <= set(found)


def test_a_network_is_measured_once_a_process_by_its_weights_and_not_by_its_name_in_memory(
    monkeypatch: pytest.MonkeyPatch,
):
    measured: list[int] = []

    def counted(models, request, every):
        measured.append(request.B)
        return Errors(1.0, 0.5, 0.25)

    monkeypatch.setattr(measure, "errors", counted)
    monkeypatch.setattr(measure, "_BUDGETS", {})
    models = tiny(Layout((1, 2, 3)))
    copied = models.to("cpu", torch.float64).to("cpu", torch.float32)
    assert copied.target is not models.target
    for same in (models, copied, replace(models, draft=copied.target)):
        assert quick(same).rows == MARGIN
    assert measured == [8]
    heads = replace(models.target, config=replace(models.target.config, H=4))
    bent = with_weight(models.target, "head.weight", lambda weight: weight * 1.01)
    for other in (replace(models, target=bent), replace(models, target=heads), models.to("cpu", torch.bfloat16)):
        quick(other)
    assert len(measured) == 4


def test_weights_that_are_changed_in_place_are_measured_anew():
    models = tiny(Layout((1, 2, 3)))
    models = replace(models, target=with_weight(models.target, "head.weight", lambda weight: weight))
    before = quick(models)
    models.target.weights["head.weight"].mul_(100)
    assert quick(models).rows > 10 * before.rows


def test_logits_that_overflow_have_no_budget():
    models = tiny(Layout((1, 2, 3)))
    models = replace(models, target=with_weight(models.target, "head.bias", lambda weight: weight + float("inf")))
    with pytest.raises(NonFiniteError, match=r"target\.logits"):
        quick(models)
