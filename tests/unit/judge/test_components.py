"""A wrong tensor names its component, and rounding names none."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from harness.judge import _components as components
from harness.judge._components import first_wrong, first_wrong_of
from harness.judge._evidence import Evidence, WrongTensor
from harness.protocol._request import Request
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import Budget
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
BUDGET = Budget(1e-3, 1e-4, 1e-5, "by hand")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("si", "cfg"), [(0, 4.0), (1, 1.0), (2, 4.0)])
def test_the_textbook_form_of_guidance_is_rounding_and_no_defect(si: int, cfg: float, dtype: torch.dtype):
    request = Request((0,), cfg=cfg)
    trace = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    rows_RLV = torch.randn(trace.intermediates.rows_RLV.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    rows_RLV[1] *= 100  # where c is small beside u, u + (c - u) is not c
    trace.intermediates.rows_RLV = rows_RLV
    conditional_LV, unconditional_LV = rows_RLV
    t = cfg * MODELS.pyramid.ramp(si)
    assert t == (0.0, 0.5, 4.0)[si]

    def judged(guided_LV: torch.Tensor) -> WrongTensor | None:
        trace.intermediates.guided_BLV = guided_LV[None]
        evidence = Evidence(MODELS, request, trace, trace, BUDGET)
        return first_wrong_of(evidence, 0, [si])

    assert judged(unconditional_LV + (1 + t) * (conditional_LV - unconditional_LV)) is None
    off = t * (1 + 1e-4) if t else 1e-6
    made = {0.0: "1.000001·cond − 1e-06", 0.5: "1.50005·cond − 0.50005", 4.0: "5.0004·cond − 4.0004"}[t]
    due = f"(1 + t)·cond − t·uncond with t = cfg·si/(S−1) = {t:g} is due"
    for guided_LV, why in (
        ((1 + off) * conditional_LV - off * unconditional_LV, f"they are {made}·uncond; {due}"),
        (2.5 * conditional_LV - 1.5 * unconditional_LV, f"they are 2.5·cond − 1.5·uncond; {due}"),
        (0.5 * conditional_LV + 0.25 * unconditional_LV, f"they are 0.5·cond + 0.25·uncond; {due}"),
        (conditional_LV**2, "weight or halves"),
        (
            (1 + t) * unconditional_LV - t * conditional_LV,  # at all scales alike: as if t did not grow
            "halves swapped, unconditional half first" if si else "the unconditional half alone",
        ),
    ):
        wrong = judged(guided_LV)
        assert (wrong.component, wrong.detail.partition(": ")[2]) == ("guidance", why)


def test_weights_of_guidance_are_found_however_halves_differ_in_size():
    request = Request((0,), cfg=4.0)
    trace = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    for seed in range(40):
        rows_RLV = torch.randn(
            trace.intermediates.rows_RLV.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double
        )
        rows_RLV[1] *= 100
        trace.intermediates.rows_RLV, trace.intermediates.guided_BLV = rows_RLV, 2.5 * rows_RLV[:1] - 1.5 * rows_RLV[1:]
        wrong = first_wrong_of(Evidence(MODELS, request, trace, trace, BUDGET), 0, [2])
        assert "they are 2.5·cond − 1.5·uncond; " in wrong.detail


@pytest.mark.parametrize(("share", "named"), [(0.9, True), (1.1, False)])
def test_weights_are_named_where_they_give_every_logit(share: float, named: bool):
    """Plant: guidance of one weight at all scales, and one logit that is off by more than rounding, or by less."""
    found = agreeing(BUDGET)
    shown = found.actual.intermediates
    conditional_BLV, unconditional_BLV = shown.rows_RLV.double().chunk(2)
    guided_BLV = 2.5 * conditional_BLV - 1.5 * unconditional_BLV
    size_V = (conditional_BLV.abs() + unconditional_BLV.abs())[0, 0]
    one = size_V.argmin()  # least squares hardly see it
    guided_BLV[0, 0, one] += share * 8 * 2**-23 * 2.5 * size_V[one]
    made = replace(shown, guided_BLV=guided_BLV)
    wrong = first_wrong(replace(found, actual=replace(found.actual, intermediates=made)))[0]
    assert (wrong.component, wrong.scale) == ("guidance", 0)
    assert ("they are 2.5·cond − 1.5·uncond" in wrong.detail, "weight or halves" in wrong.detail) == (named, not named)


def test_swapped_halves_are_told_from_another_convention_where_guidance_has_no_weight():
    found = agreeing(BUDGET)
    shown, pyramid = found.actual.intermediates, MODELS.pyramid
    conditional_BLV, unconditional_BLV = shown.rows_RLV.chunk(2)
    t_L1 = torch.tensor([4.0 * pyramid.ramp(si) for si in pyramid for _ in range(pyramid.tokens(si))])[:, None]
    other = unconditional_BLV + t_L1 * (conditional_BLV - unconditional_BLV)
    swapped = (1 + t_L1) * unconditional_BLV - t_L1 * conditional_BLV
    for guided_BLV, why in ((other, "the unconditional half alone"), (swapped, "halves swapped, unconditional")):
        made = replace(shown, guided_BLV=guided_BLV)
        wrong = first_wrong(replace(found, actual=replace(found.actual, intermediates=made)))[0]
        assert (wrong.component, wrong.scale) == ("guidance", 0)
        assert why in wrong.detail


@pytest.mark.parametrize(
    ("share", "by", "wrong"),
    [(1, 0.9, False), (1, 1.5, True), (1, 4.5, True), (99, 4.5, False), (99, 5.5, True)],
    ids=["all, little", "all, beyond the mean", "all, below the worst", "few, below the worst", "few, beyond it"],
)
def test_rows_are_bounded_at_worst_and_on_average(share: int, by: float, wrong: bool):
    """Plant: a wrong mask moves every logit by less than the worst rounding, as bfloat16 has it."""
    request = Request((0, 1), cfg=0.0)  # guided logits are the conditional rows
    expected = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    budget = replace(BUDGET, rows_rms=BUDGET.rows / 5)
    span, moved_RLV = MODELS.pyramid.span(2), expected.intermediates.rows_RLV.clone()
    moved_RLV[1::2, span].flatten(1)[:, ::share].add_(2 * by * budget.rows_rms)  # both halves of image 1
    shown = replace(expected.intermediates, rows_RLV=moved_RLV, guided_BLV=moved_RLV[:2])
    evidence = Evidence(MODELS, request, replace(expected, intermediates=shown), expected, budget)
    found = first_wrong(evidence)
    assert found[0] is None
    assert found[1] == (WrongTensor(2, "mask or cache", found[1].detail) if wrong else None)
    assert (first_wrong_of(evidence, 1, [2]) is not None) == wrong


NAMES = ("x_RLD", "rows_RLV", "guided_BLV", "f_hat_SBCPP")


def agreeing(budget: Budget) -> Evidence:
    """Return two traces of two images that agree to the last bit."""
    request = Request((0, 1), cfg=4.0)
    expected = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    return Evidence(MODELS, request, deepcopy(expected), expected, budget)


def test_what_is_equal_agrees_where_nothing_may_move():
    found = agreeing(Budget(0.0, 0.0, 0.0, "by hand"))
    shown, due = found.actual.intermediates, found.expected.intermediates
    with torch.inference_mode():  # as the tensors were made
        for kept in (shown, due):
            kept.rows_RLV[:, 3], kept.guided_BLV[:, 3] = 0.0, 0.0
    assert first_wrong(found) == {0: None, 1: None}
    assert [first_wrong_of(found, 1, [si]) for si in MODELS.pyramid] == [None] * 3


@pytest.mark.parametrize("name", NAMES)
def test_of_a_batch_only_the_image_that_differs_is_looked_at_again(name: str, monkeypatch: pytest.MonkeyPatch):
    """A batch is compared at once; placing what is wrong costs a look at every scale."""
    found, looked = agreeing(BUDGET), []
    of_image = {"x_RLD": (slice(1, None, 2),), "rows_RLV": (slice(1, None, 2),), "guided_BLV": (1,)}
    getattr(found.actual.intermediates, name)[of_image.get(name, (slice(None), 1))] += 9.0
    explained = components._explained
    monkeypatch.setattr(
        components,
        "_explained",
        lambda evidence, image, *place: looked.append(image) or explained(evidence, image, *place),
    )
    first_wrong(found)
    assert looked == [1]


@pytest.mark.parametrize(
    ("mode", "ulps"), [("float32", 64 * 2**-23), ("autocast-bfloat16", 4 * 2**-7), ("autocast-float16", 4 * 2**-10)]
)
@pytest.mark.parametrize(("share", "far"), [(0.9, False), (1.1, True)])
def test_an_input_is_as_fine_as_products_are(mode: str, ulps: float, share: float, far: bool):
    models, request = MODELS.in_mode("cpu", mode), Request((0,))
    trace = sample_sequential(models.target, models.vae, request, models.noise(request))
    moved = deepcopy(trace)
    moved.shown.x_RLD[0, 3, 0] += share * ulps * max(1.0, float(trace.shown.x_RLD.abs().max()))
    evidence = Evidence(models, request, moved, trace, replace(BUDGET, f_hat=1e-9))
    assert (first_wrong_of(evidence, 0, [1]) is not None) == far
