"""`more_smooth`: judged from scale to scale, by what the decoder shows; rounding passes, another mixture does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import Tensor

from harness.judge import Verdict, judge
from harness.judge._evidence import SMOOTH_ROUNDING, Evidence
from harness.models import load_digits
from harness.protocol import Intermediates, Request, Trace
from harness.reference import _steps as families
from harness.reference._var import smooth_codes
from harness.reference.sequential import sample_sequential
from harness.rounding import quick_budget

MODELS, REQUEST = load_digits(), Request((0, 1), 3, cfg=4.0, more_smooth=True)


def _in_another_order(logits_BlV: Tensor, E_BlV: Tensor, codebook_VC: Tensor, ramp: float) -> Tensor:
    tau = max(0.27 * (1 - 0.95 * ramp), 0.005)
    score_BlV = logits_BlV * ((1 + ramp) / tau) - E_BlV.log() / tau
    weights_BlV = (score_BlV - score_BlV.amax(-1, keepdim=True)).exp()
    return (weights_BlV @ codebook_VC) / weights_BlV.sum(-1, keepdim=True)


def _moved(share: float) -> Callable[..., Tensor]:
    return lambda logits_BlV, *rest: smooth_codes(logits_BlV * (1 + share), *rest)


def _decoded(monkeypatch: pytest.MonkeyPatch, codes: Callable[..., Tensor] | None = None) -> Evidence:
    expected = sample_sequential(MODELS.target, MODELS.vae, REQUEST, MODELS.noise(REQUEST))
    with monkeypatch.context() as patch:
        if codes is not None:
            patch.setitem(families.FAMILIES, "var", replace(families.VAR, smooth_codes=codes))
        actual = sample_sequential(MODELS.target, MODELS.vae, REQUEST, MODELS.noise(REQUEST))
    return Evidence(MODELS, REQUEST, actual, expected, quick_budget(MODELS))


@pytest.mark.parametrize("codes", [None, _in_another_order])
def test_rounding_is_no_defect_though_it_grows_from_scale_to_scale(
    codes: Callable[..., Tensor] | None, monkeypatch: pytest.MonkeyPatch
):
    found = _decoded(monkeypatch, codes)
    assert judge(found, drafts=False).verdict is Verdict.IDENTICAL
    along = found.along()
    assert 0 < along.f_hat_error - 2 * along.budget.f_hat < 1e-3 * SMOOTH_ROUNDING


@pytest.mark.parametrize("share", [1e-3, -1e-3])
def test_logits_a_thousandth_off_are_seen(share: float, monkeypatch: pytest.MonkeyPatch):
    (first, *_) = judge(_decoded(monkeypatch, _moved(share)), drafts=False).defects
    assert first.component == "f_hat"


def test_codes_of_the_tokens_are_said_to_be_these(monkeypatch: pytest.MonkeyPatch):
    found = _decoded(monkeypatch)
    hard = replace(REQUEST, more_smooth=False)
    actual: Trace = sample_sequential(MODELS.target, MODELS.vae, hard, MODELS.noise(REQUEST))
    (first, *_) = judge(replace(found, actual=actual), drafts=False).defects
    assert "f_hat after scale 0 is that of the tokens: more_smooth has no effect" in str(first)


def test_without_intermediates_nothing_is_proved(monkeypatch: pytest.MonkeyPatch):
    found = _decoded(monkeypatch)
    judged = judge(replace(found, actual=replace(found.actual, intermediates=None)), drafts=False)
    assert judged.inconclusive == ["more_smooth is judged from scale to scale, by Trace.intermediates"]
    assert judged.verdict is Verdict.INCONCLUSIVE


def test_the_most_likely_token_is_taken_on_both_sides_where_it_is_asked():
    def decoded(greedy: bool) -> Trace:
        return sample_sequential(MODELS.target, MODELS.vae, REQUEST, MODELS.noise(REQUEST), greedy=greedy)

    def judged(actual: Trace) -> Verdict:
        evidence = Evidence(MODELS, REQUEST, actual, decoded(True), quick_budget(MODELS), greedy=True)
        return judge(evidence, drafts=False).verdict

    assert judged(decoded(True)) is Verdict.IDENTICAL
    assert judged(decoded(False)) is Verdict.DEFECT


def test_what_is_not_finite_of_one_image_accuses_no_other(monkeypatch: pytest.MonkeyPatch):
    found = _decoded(monkeypatch)
    assert found.actual.intermediates is not None
    shown = {name: tensor.clone() for name, tensor in found.actual.intermediates.named().items()}
    shown["guided_BLV"][1, -1] = float("nan")
    actual = replace(found.actual, intermediates=Intermediates(**shown))
    defects = judge(replace(found, actual=actual), drafts=False).defects
    assert {(each.image, each.scale) for each in defects} == {(1, MODELS.pyramid.S - 1)}
    assert defects[0].component == "guidance"
