"""The measurement: once a mode, on the reference alone, and tight where few windows are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.errors import NonFiniteError
from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid
from harness.reference.sequential import sample_sequential
from harness.rounding import _measure as measure
from harness.rounding._budget import BUDGET_MARGIN, Budget
from harness.rounding._measure import WIDEST, Errors, errors, joint_budget, quick_budget, windows
from tests.helpers import LAYOUTS, Layout, digits, tiny, with_weight

FRESH = [Request((0, 1, 2), seed, cfg) for seed, cfg in ((50, 0.0), (51, 4.0), (52, 1.5))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYOUTS)
def test_few_windows_cover_every_window_of_fresh_images_and_are_near(name: str, dtype: torch.dtype):
    models = tiny(LAYOUTS[name]).to("cpu", dtype)
    budget, fresh = quick_budget(models), [errors(models, request) for request in FRESH]
    for word in ("rows", "rows_rms", "f_hat"):
        met = max(getattr(batch, word) for batch in fresh)
        assert getattr(budget, word) / (4 * BUDGET_MARGIN) < met < getattr(budget, word), word


@pytest.mark.slow
def test_few_windows_cover_every_window_of_the_digits():
    budget, fresh = quick_budget(digits()), errors(digits(), Request((4,), 90, 4.0))
    for word in ("rows", "rows_rms", "f_hat"):
        assert getattr(budget, word) / (4 * BUDGET_MARGIN) < getattr(fresh, word) < 0.8 * getattr(budget, word), word


@pytest.mark.parametrize(("every", "expected"), [(True, 10), (False, 5)])
def test_the_stated_windows_are_measured(every: bool, expected: int):
    models = tiny(Layout((1, 2, 3, 4)))
    tokens_BL = torch.zeros(1, models.pyramid.L, dtype=torch.int64)
    found = [(first, rows.shape[1]) for first, rows in windows(models, Request((0,)), tokens_BL, every)]
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
        assert quick_budget(same).rows == BUDGET_MARGIN
    assert measured == [8]
    heads = replace(models.target, config=replace(models.target.config, H=4))
    bent = with_weight(models.target, "head.weight", lambda weight: weight * 1.01)
    for other in (replace(models, target=bent), replace(models, target=heads), models.to("cpu", torch.bfloat16)):
        quick_budget(other)
    assert len(measured) == 4


def test_weights_that_are_changed_in_place_are_measured_anew():
    models = tiny(Layout((1, 2, 3)))
    models = replace(models, target=with_weight(models.target, "head.weight", lambda weight: weight))
    before = quick_budget(models)
    models.target.weights["head.weight"].mul_(100)
    assert quick_budget(models).rows > 10 * before.rows


def test_logits_that_overflow_have_no_budget():
    models = tiny(Layout((1, 2, 3)))
    models = replace(models, target=with_weight(models.target, "head.bias", lambda weight: weight + float("inf")))
    with pytest.raises(NonFiniteError, match=r"target\.logits"):
        quick_budget(models)


def naive(models, request: Request) -> tuple[float, float, float]:
    """Return the largest errors of every window against float64, as the definition reads."""
    pyramid, noise = models.pyramid, models.noise(request)
    run = sample_sequential(models.target, models.vae, request, noise)
    wide = models.to("cpu", torch.float64)
    forced = sample_sequential(wide.target, wide.vae, request, noise, run.tokens_BL)
    exact_RLV = forced.intermediates.rows_RLV
    rows, rms = 2.0**-23 * float(exact_RLV.abs().max()), 2.0**-23 * float(exact_RLV.square().mean().sqrt())
    for first, rows_RnV in windows(models, request, run.tokens_BL, every=True):
        begin = pyramid.begin(first)
        error_RnV = (rows_RnV.double() - exact_RLV[:, begin : begin + rows_RnV.shape[1]]).abs()
        rows = max(rows, float(error_RnV.max()))
        levels_n = torch.tensor(pyramid.levels()[begin : begin + rows_RnV.shape[1]])
        for si in set(levels_n.tolist()):
            for row in range(len(error_RnV)):
                rms = max(rms, float(error_RnV[row, levels_n == si].square().mean().sqrt()))
    f_hat = float((run.intermediates.f_hat_SBCPP.double() - forced.intermediates.f_hat_SBCPP)[:-1].abs().max())
    return rows, rms, max(f_hat, 2.0**-23 * max(1.0, float(run.f_hat_BCPP.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_errors_are_those_of_the_definition(dtype: torch.dtype):
    models = tiny(Layout((1, 2, 3))).to("cpu", dtype)
    found, due = errors(models, FRESH[1]), naive(models, FRESH[1])
    assert (found.rows, found.rows_rms, found.f_hat) == pytest.approx(due, rel=1e-3)


def test_an_entry_is_the_largest_of_its_batches_and_a_quick_budget_twice_its_errors(monkeypatch: pytest.MonkeyPatch):
    models, seen = tiny(Layout((1, 2, 3))), []

    def made(measured, request: Request, every: bool = True) -> Errors:
        assert measured is models
        seen.append((request.labels, request.seed, every))
        return [Errors(1.0, 0.5, 0.25), Errors(0.5, 0.75, 0.125), Errors(2.0, 0.25, 0.0625)][len(seen) - 1]

    monkeypatch.setattr(measure, "errors", made)
    entry = measure.measure_budget(models)
    assert seen == [((0,), 0, True), ((1, 2), 1, True), ((2, 0, 1, 2, 0, 1, 2, 0), 2, True)]
    assert (entry.rows, entry.rows_rms, entry.f_hat, entry.windows, entry.images) == (2.0, 0.75, 0.25, 6, 11)
    assert entry.budget().source.endswith(" stored (cpu, float32, 6 windows)")
    assert entry.versions["torch"] == torch.__version__
    seen.clear()
    budget = measure._quick(models)
    assert seen == [((0, 1, 2, 0, 1, 2, 0, 1), 0, False)]  # small images: eight of them
    assert (budget.rows, budget.rows_rms, budget.f_hat) == (2.0, 1.0, 0.5)
    said = "2 × the reference's largest error against float64, measured in this run (cpu, float32, 8 images)"
    assert budget.source == said
    seen.clear()
    monkeypatch.setattr(measure, "mode_of", lambda models: ("m", "w", "a GPU", "bfloat16", "TF32"))
    assert measure._quick(models).source == said.replace("cpu, float32", "a GPU, bfloat16 TF32")


@pytest.mark.parametrize(("L", "images"), [(14, 8), (680, 2), (150, 8), (300, 4), (2240, 2)])
def test_so_many_images_that_enough_numbers_are_met(L: int, images: int, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(measure, "errors", lambda models, request, every: seen.append(request.B) or Errors(1, 1, 1))
    monkeypatch.setattr(ScalePyramid, "L", L)
    measure._quick(tiny(Layout((1, 2, 3))))
    assert seen == [images]


def test_sizes_are_the_largest_numbers_of_one_image():
    models = tiny(Layout((1, 2, 3)))
    run = sample_sequential(models.target, models.vae, Request((0,), 0), models.noise(Request((0,), 0)))
    kept = run.intermediates
    assert measure._sizes(models) == (float(kept.rows_RLV.abs().max()), float(kept.f_hat_SBCPP.abs().max()))


def test_a_scale_alone_is_measured_without_a_mask_as_decoders_run_it(monkeypatch: pytest.MonkeyPatch):
    models, masks = tiny(Layout((1, 2, 3))).to("cpu", torch.bfloat16), []
    whole = type(models.target).hidden

    def hidden(network, x_RnD, condition, cache, mask_11nK, positions=None):
        masks.append((x_RnD.shape[1], None if mask_11nK is None else (mask_11nK.shape[2:], mask_11nK.dtype)))
        return whole(network, x_RnD, condition, cache, mask_11nK)

    monkeypatch.setattr(type(models.target), "hidden", hidden)
    list(windows(models, Request((0,)), torch.zeros(1, 14, dtype=torch.int64), every=True))
    of = {n: ((n, K), torch.bfloat16) for n, K in ((5, 5), (14, 14), (13, 14))}
    assert masks == [(1, None), (5, of[5]), (14, of[14]), (4, None), (13, of[13]), (9, None)]


def test_a_compiled_decoder_is_judged_by_the_wider_of_both_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    models, here = tiny(Layout((1, 2, 3))), tmp_path / "budgets.json"

    def measured(models: ModelPair, store: Path) -> Budget:
        assert store == here
        return Budget(3.0, 1.0, 5.0, "compiled") if models.target.compiled else Budget(2.0, 4.0, 1.0, "plain")

    monkeypatch.setattr(measure, "budget_for", measured)
    assert joint_budget(models, False, here) == Budget(2.0, 4.0, 1.0, "plain")
    made = joint_budget(models, True, here)
    assert made == Budget(3.0, 4.0, WIDEST * 1.0, "the wider of two: plain; compiled, 4 times the first at most")
