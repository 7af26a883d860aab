"""What decides a verdict is fixed before the decoder is built: budgets by request and scale, and the precision mode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.decoders._factory import Factory
from harness.judge._verdict import Verdict
from harness.models._pair import ModelPair
from harness.protocol._decoder import Implementation, Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import SeededNoise
from harness.rounding._measure import quick_budget
from harness.runs import _decodes as decodes
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, decoder_factory, tiny, verify_here, with_weight

FOUR = Layout((1, 2, 3, 4))
REQUEST = Request((0, 1, 2), 0)


def switch_tf32_on(models: ModelPair, settings: Settings) -> Implementation:
    """Plant: the factory switches TF32 on, so that the mode, and with it the budget, would be another one."""
    torch.backends.cuda.matmul.allow_tf32 = True
    return build_decoder(models, settings)


class SwitchesTf32On:
    """Plant: a right decoder that switches TF32 on while it decodes."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, fails: bool = False) -> None:
        self.inner, self.fails = build_decoder(models, settings), fails

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        torch.backends.cuda.matmul.allow_tf32 = True
        if self.fails:
            raise RuntimeError("after the switch")
        return self.inner.decode(request, noise)


@pytest.mark.parametrize(
    ("factory", "doing", "count"),
    [
        (switch_tf32_on, "building", 1),
        (SwitchesTf32On, "decoding", 2),
        (lambda models, settings: SwitchesTf32On(models, settings, True), "decoding", 2),
    ],
)
def test_a_decoder_that_switches_tf32_on_is_a_defect_and_it_is_put_back(factory: Factory, doing: str, count: int):
    result = verify_here(tiny(FOUR), factory, [Settings(2)], [REQUEST, replace(REQUEST, seed=1)])
    first = result.first_divergence
    assert result.verdict is Verdict.DEFECT
    assert (first.component, first.detail) == ("precision", f"{doing} changed tf32_matmul from False to True")
    found = [*result.early, *(d for j in result.settings[0].judgements for d in j.defects)]
    assert sum(d.detail == first.detail for d in found) == count
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_the_mode_is_read_before_the_decoder_is_built(monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    measured = decodes.joint_budget
    monkeypatch.setattr(decodes, "joint_budget", lambda *words: (order.append("budget"), measured(*words))[1])

    def factory(models: ModelPair, settings: Settings) -> Implementation:
        order.append("decoder")
        return build_decoder(models, settings)

    verify_here(tiny(FOUR), factory, [Settings(2)], [REQUEST])
    assert order == ["budget", "decoder"]


def test_the_widest_budget_of_several_guidance_values_is_stated():
    models, requests = tiny(FOUR), [replace(REQUEST, cfg=cfg) for cfg in (0.0, -4.0, 1.5)]
    result = verify_here(models, decoder_factory(), [Settings(2)], requests)
    one = verify_here(models, decoder_factory(), [Settings(2)], requests[1:2])
    assert result.budget == replace(one.budget, source=f"{one.budget.source}; the widest, at cfg 4")
    assert one.budget.logits == pytest.approx(9 * quick_budget(models).rows)


@pytest.mark.parametrize(("share", "verdict"), [(0.5, Verdict.IDENTICAL), (3.0, Verdict.DEFECT), (7.0, Verdict.DEFECT)])
def test_rows_are_judged_before_guidance(share: float, verdict: Verdict):
    """Plant: one logit of every row is off by a share of the budget; guidance would excuse 8 budgets at cfg 1.5."""
    models = tiny(FOUR)
    off = share * quick_budget(models).rows
    bent = with_weight(models.target, "head.bias", lambda bias: bias + off * (torch.arange(len(bias)) == 0))
    result = verify_here(models, lambda m, s: build_decoder(replace(m, target=bent), s), [Settings(2)], [REQUEST])
    assert result.verdict is verdict
    if verdict is Verdict.DEFECT:
        assert (result.first_divergence.component, result.first_divergence.scale) == ("mask or network", 0)
