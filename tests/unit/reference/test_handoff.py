"""The hand-off sampler: where it must equal sequential decoding, and where its two modes differ."""

from __future__ import annotations

import pytest
import torch

from harness.errors import InputError
from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.reference._handoff import HandOff, sample_handoff
from harness.reference.sequential import sample_sequential
from tests.helpers import LAYOUTS, digits, tiny

REQUEST = Request((0, 2), 5, cfg=2.0)
STRANGERS = float("inf")  # a draft that the target does not resemble, so that who decided a token shows


def handed(models: ModelPair, hand_off: HandOff, request: Request = REQUEST) -> Trace:
    return sample_handoff(models, request, models.noise(request), hand_off)


def alone(models: ModelPair, network: str, request: Request = REQUEST, forced=None) -> Trace:
    chosen = {"draft": models.draft, "target": models.target}[network]
    return sample_sequential(chosen, models.vae, request, models.noise(request), forced)


def assert_same(a: Trace, b: Trace):
    assert torch.equal(a.tokens_BL, b.tokens_BL)
    assert torch.allclose(a.f_hat_BCPP, b.f_hat_BCPP, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_corrected_entry_0_with_the_causal_mask_is_sequential(layout: str):
    models = tiny(LAYOUTS[layout], kin=STRANGERS)
    assert_same(handed(models, HandOff(0, 3, "corrected")), alone(models, "target"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_corrected_entry_with_the_causal_mask_is_the_target_forced_on_the_drafts_scales(layout: str):
    models = tiny(LAYOUTS[layout], kin=STRANGERS)
    draft_BL, pyramid = alone(models, "draft").tokens_BL, models.pyramid
    for entry in pyramid:
        trace = handed(models, HandOff(entry, 3, "corrected"))
        begin = pyramid.begin(entry)
        assert torch.equal(trace.tokens_BL[:, :begin], draft_BL[:, :begin])
        forced = alone(models, "target", forced=trace.tokens_BL)
        assert torch.equal(trace.tokens_BL[:, begin:], forced.tokens_BL[:, begin:]), entry
        assert trace.target_calls == [pyramid.S - entry] * 2


@pytest.mark.parametrize("mode", ["recorded", "corrected"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_entry_0_without_a_prefix_is_sequential(layout: str, mode: str):
    models = tiny(LAYOUTS[layout], kin=STRANGERS)
    assert_same(handed(models, HandOff(0, 0, mode)), alone(models, "target"))


@pytest.mark.parametrize("mode", ["recorded", "corrected"])
@pytest.mark.parametrize("beyond", [0, 3])
@pytest.mark.parametrize("sd_mask", range(6))
def test_entry_at_the_last_scale_or_beyond_is_the_draft_alone(mode: str, beyond: int, sd_mask: int):
    models = tiny(LAYOUTS["phi-per-scale"], kin=STRANGERS)
    trace = handed(models, HandOff(models.pyramid.S + beyond, sd_mask, mode))
    assert_same(trace, alone(models, "draft"))
    assert (trace.target_calls, trace.target_rows) == ([0, 0], [0, 0])


@pytest.mark.slow
def test_digits_keep_the_properties_at_every_entry():
    models, request = digits(), Request((3,), 1)
    target = alone(models, "target", request)
    assert_same(handed(models, HandOff(0, 3, "corrected"), request), target)
    assert not torch.equal(handed(models, HandOff(0, 3, "recorded"), request).tokens_BL, target.tokens_BL)
    for entry in models.pyramid:
        trace, begin = handed(models, HandOff(entry, 3, "corrected"), request), models.pyramid.begin(entry)
        forced = alone(models, "target", request, trace.tokens_BL)
        assert torch.equal(trace.tokens_BL[:, begin:], forced.tokens_BL[:, begin:])


@pytest.mark.parametrize("sd_mask", range(1, 6))
def test_the_modes_differ_from_the_entry_scale_on_and_nowhere_before(sd_mask: int):
    models, entry = tiny(LAYOUTS["phi-per-scale"], kin=STRANGERS), 2
    recorded, corrected = (handed(models, HandOff(entry, sd_mask, mode)) for mode in ("recorded", "corrected"))
    begin = models.pyramid.begin(entry)
    assert torch.equal(recorded.intermediates.rows_RLV[:, :begin], corrected.intermediates.rows_RLV[:, :begin])
    span = models.pyramid.span(entry)
    assert not torch.allclose(recorded.intermediates.rows_RLV[:, span], corrected.intermediates.rows_RLV[:, span])


def test_without_a_prefix_the_modes_are_one():
    models = tiny(LAYOUTS["phi-per-scale"], kin=STRANGERS)
    assert_same(handed(models, HandOff(2, 0, "recorded")), handed(models, HandOff(2, 0, "corrected")))


@pytest.mark.parametrize(
    ("values", "said"),
    [((-1, 0), "entry=-1: must be 0 or more"), ((0, 6), "sd_mask=6: must lie in 0..5"), ((0, 0, "x"), "mode=x: must")],
)
def test_values_outside_their_range_are_refused(values: tuple, said: str):
    with pytest.raises(InputError, match=said):
        HandOff(*values)
