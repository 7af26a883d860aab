"""Contract B forbids what the filter leaves no probability, and a law that nobody tested proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import ModelPair, Request, SeededNoise, Settings, Terms, Trace, Verdict, build_decoder, verify
from harness.judge import Divergence, Evidence, Judgement, judge
from harness.protocol import Contract, Round
from harness.reference.sequential import sample_sequential
from harness.rounding import Budget, budget_for
from harness.runs import THE_LAW, LawsTried
from harness.runs._result import UNTESTED
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
FILTERS = [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.8}]


class OwnTokens:
    """Claims contract B, draws by a rule of its own, and shows honest tensors along its tokens."""

    contract = "distribution-identical"

    def __init__(self, models: ModelPair, token: int) -> None:
        self.models, self.token = models, token

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        pyramid, B = self.models.pyramid, request.B
        forced_BL = torch.full((B, pyramid.L), self.token)
        trace = sample_sequential(self.models.target, self.models.vae, request, noise, forced_BL)
        rounds = [Round(si, 1, 1, False, False, pyramid.tokens(si), 0, 0, pyramid.end(si)) for si in pyramid]
        rows = [sum(turn.target_rows for turn in rounds)] * B
        calls = [pyramid.S] * B
        return replace(trace, tokens_BL=forced_BL, rounds=[rounds] * B, target_calls=calls, target_rows=rows)


def own_tokens(models: ModelPair, settings: Settings) -> OwnTokens:
    """Always draw a token that is unlikely everywhere: these networks hardly look at what came before."""
    shown = evidence().expected.intermediates
    assert shown is not None
    return OwnTokens(models, int(shown.guided_BLV.softmax(-1).amax((0, 1)).argmin()))


def rejection(models: ModelPair, settings: Settings) -> Any:
    return build_decoder(models, replace(settings, policy="rejection"))


def found(factory: Any, terms: Terms | None = None, **filters: float) -> Any:
    how = terms or Terms(in_process=True)
    return verify(MODELS, factory, Settings(2), Request((0, 1, 2), 3, **filters), terms=how)  # type: ignore[arg-type]


@pytest.mark.parametrize("filters", FILTERS)
def test_a_token_that_the_filter_drops_is_a_defect_and_a_right_decoder_has_none(filters: dict[str, float]):
    wrong = found(own_tokens, **filters)
    assert wrong.verdict is Verdict.DEFECT
    first, (setting,) = wrong.first_divergence, wrong.settings
    assert first.component == "accept"
    assert "the draft's token is accepted, and has probability 0 under the target's top_" in first.detail
    counts = {name: setting.total(name) for name in ("draws", "identical", "wrong_tokens", "unclaimed")}
    assert counts["draws"] == counts["identical"] + counts["wrong_tokens"] + counts["unclaimed"]
    assert counts["wrong_tokens"] == setting.total("defects") > 10
    for seed in range(10):
        right = verify(
            MODELS, rejection, Settings(2), Request((0, 1, 2), seed, **filters), terms=Terms(in_process=True)
        )  # type: ignore[arg-type]
        assert right.settings[0].total("defects") == 0


def test_without_a_filter_nothing_is_forbidden_and_few_images_leave_the_law_open():
    result = found(rejection)
    assert (result.verdict, result.settings[0].total("defects")) == (Verdict.INCONCLUSIVE, 0)
    (why,) = result.inconclusive
    assert why.startswith(UNTESTED.partition("{")[0] + "3 images prove little: ")


def test_a_token_that_is_unlikely_everywhere_is_another_law():
    result = found(own_tokens)
    assert (result.verdict, result.settings[0].total("defects")) == (Verdict.DEFECT, 1)
    first = result.first_divergence
    assert first.component == "law"
    assert first.detail.startswith("the tokens are as if ")
    (wealth,) = result.settings[0].as_dict()["bets"]
    assert (wealth["verdict"], wealth["images"]) == ("DEFECT", 3)


def evidence(**filters: float) -> Evidence:
    request = Request((0, 1), 5, **filters)  # type: ignore[arg-type]
    trace = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    return Evidence(MODELS, request, trace, trace, budget_for(MODELS))


def with_rank(of: Evidence, rank: int) -> tuple[Evidence, float]:
    """Draw the last token of the first image from a rank, 0 being the likeliest; how far it is from the one above."""
    shown = of.actual.intermediates
    assert shown is not None
    logits_V, order_V = shown.guided_BLV[0, -1].sort(descending=True)
    tokens_BL = of.actual.tokens_BL.clone()
    tokens_BL[0, -1] = order_V[rank]
    return replace(of, actual=replace(of.actual, tokens_BL=tokens_BL)), float(logits_V[rank - 1] - logits_V[rank])


def judged(of: Evidence, budget: Budget | None = None) -> Judgement:
    return judge(replace(of, budget=budget or of.budget), Contract.LAW, drafts=False)


def defects(judgement: Judgement) -> list[Divergence]:
    return [each for each in judgement.defects if "probability 0" in each.detail]


def test_the_edge_of_the_filter_is_as_wide_as_rounding_and_no_wider():
    inside, _ = with_rank(evidence(top_k=4), 3)
    assert defects(judged(inside)) == []
    outside, gap = with_rank(evidence(top_k=4), 4)
    (wrong,) = defects(judged(outside))
    assert (wrong.component, wrong.scale, wrong.position) == ("draw", 2, 13)
    assert wrong.detail == "the token has probability 0 under the target's top_k=4"
    # both sides may be off by the budget, and both logits of each
    for share, count in ((0.9, 1), (1.1, 0)):
        rows = share * gap / 4 / Budget(1.0, 1.0, 0.0, "").guided(outside.request.cfg, 1.0).logits
        assert len(defects(judged(outside, Budget(rows, rows, 1e-3, "by hand")))) == count


def test_a_law_that_was_tested_and_held_is_consistent():
    result = found(rejection)
    result.take_laws(LawsTried(2, held=60))
    assert (result.verdict, result.inconclusive) == (Verdict.CONSISTENT, [])
    for unproven in ("trivial", "refused", "not_applicable", "left"):
        result = found(rejection)
        result.take_laws(LawsTried(2, held=60, **{unproven: (THE_LAW,)}))  # type: ignore[arg-type]
        assert result.verdict is Verdict.INCONCLUSIVE
        assert any(why.startswith(UNTESTED.partition("{")[0]) for why in result.inconclusive)


def biased(models: ModelPair, settings: Settings) -> Any:
    """Replace what is rejected by the likeliest token, in place of one of what is left of the law."""
    decoder = rejection(models, settings)

    def likeliest(draft_BnV: Tensor, target_BnV: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(target_BnV.argmax(-1), target_BnV.shape[-1]).to(target_BnV.dtype)

    decoder.parts = replace(decoder.parts, residual=likeliest)
    return decoder


@pytest.mark.slow
def test_the_laws_find_another_law():
    assert found(biased).verdict is Verdict.INCONCLUSIVE
    assert found(biased, Terms(in_process=True, laws=2)).verdict is Verdict.DEFECT
    assert found(rejection, Terms(in_process=True, laws=2)).verdict is Verdict.CONSISTENT


def test_filters_by_scale_stand_in_the_place_of_the_others():
    nothing, narrow = (0, 0.0), (3, 0.0)
    one_scale = {"filters": (nothing, narrow, nothing)}
    assert found(rejection, top_k=1, **one_scale).verdict is Verdict.INCONCLUSIVE  # nobody tested the law
    wrong = found(own_tokens, **one_scale)
    assert wrong.verdict is Verdict.DEFECT
    defects = [each for judgement in wrong.settings[0].judgements for each in judgement.defects]
    assert {each.scale for each in defects if "top_k=3" in each.detail} == {1}
