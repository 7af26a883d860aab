"""The whole judgement: correct decoders pass whatever the draft does, and what cannot be right is a defect."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from harness.errors import InputError
from harness.judge._ties import MANY_TIES, unusual_ties
from harness.judge._tokens import MOST_RECORDS
from harness.judge._verdict import Divergence, Verdict
from harness.models._pair import ModelPair
from harness.mutants import guidance, masks
from harness.protocol._decoder import Implementation, Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import SeededNoise
from harness.reference._cachefree import sample_cachefree
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import Allowance
from harness.runs._setting import SettingResult
from harness.speculative.parts import PARTS
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder, build_decoder
from tests.helpers import LAYOUTS, Layout, digits, tiny, twins, verified, verify_here, with_weight

FOUR = Layout((1, 2, 3, 4))
REQUEST = Request((0, 1, 2), 0)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("bonus", [False, True])
def test_the_decoder_is_right_for_every_layout_and_draft_len(name: str, bonus: bool):
    models = tiny(LAYOUTS[name])
    settings = [Settings(length, bonus) for length in range(1, models.pyramid.S + 1)]
    request = Request((0, 1, 2, 3), 5, top_k=7, top_p=0.9)
    result = verify_here(models, healthy, settings, [request, replace(request, top_k=0, top_p=0.0)])
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE)
    assert [s.total("draws") for s in result.settings] == [8 * models.pyramid.L] * models.pyramid.S


def healthy(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
    return SpeculativeDecoder(models, DecoderOptions(settings.draft_len, settings.bonus))


def decoded(models: ModelPair, request: Request, draft_len: int, bonus: bool = False) -> Trace:
    decoder = SpeculativeDecoder(models, DecoderOptions(draft_len, bonus))
    trace = decoder.decode(request, models.noise(request))
    # clones: what was made in inference mode cannot be tampered with
    tensors = {name: getattr(trace, name).clone() for name in ("tokens_BL", "f_hat_BCPP", "scale_writes_BS")}
    return replace(trace, **tensors)


def test_the_output_is_the_same_for_every_draft_len():
    models, request = digits(), Request((3, 8), 1)
    images = [decoded(models, request, length) for length in (1, 4)]
    images.append(decoded(models, request, 5, bonus=True))
    expected = sample_sequential(models.target, models.vae, request, models.noise(request))
    for trace in images:
        assert torch.equal(trace.tokens_BL, expected.tokens_BL)
        assert float((trace.f_hat_BCPP - expected.f_hat_BCPP).abs().max()) <= 1e-6


@pytest.mark.parametrize("draft_len", [1, 2, 3, 4])
def test_a_twin_draft_needs_one_target_call_a_window(draft_len: int):
    models = twins(tiny(FOUR))
    calls = math.ceil(4 / draft_len)
    assert decoded(models, REQUEST, draft_len).target_calls == [calls] * 3
    with_bonus = math.ceil(4 / (draft_len + 1))
    assert decoded(models, REQUEST, draft_len, bonus=True).target_calls == [with_bonus] * 3
    assert with_bonus <= calls


@pytest.mark.parametrize(("draft_len", "calls"), [(5, 2), (10, 1)])
def test_a_twin_draft_needs_one_target_call_a_window_on_digits(draft_len: int, calls: int):
    assert decoded(twins(digits()), Request((4,), 2), draft_len).target_calls == [calls]


def adversary(kind: str) -> ModelPair:
    models = tiny(FOUR, float("inf"))
    if kind == "constant":
        draft = with_weight(models.draft, "head.bias", lambda bias_V: bias_V.index_fill(0, torch.tensor([3]), 1e4))
        return replace(models, draft=draft)
    if kind == "absurd":
        return replace(models, draft=with_weight(models.draft, "head.weight", lambda weight_VD: weight_VD * 1e30))
    return models


@pytest.mark.parametrize("kind", ["random", "constant", "absurd"])
@pytest.mark.parametrize("draft_len", [1, 3, 4])
def test_an_adversarial_draft_changes_nothing(kind: str, draft_len: int):
    result = verified(adversary(kind), REQUEST, draft_len=draft_len)
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE)
    assert result.settings[0].total("draws") == 90
    if kind == "constant":
        tokens_BL = decoded(adversary(kind), REQUEST, draft_len).tokens_BL
        assert len(tokens_BL.unique()) > 1  # the draft proposes 3 alone; the target does not follow


def add_up(setting: SettingResult) -> bool:
    parts = [setting.total(name) for name in ("identical", "ties", "wrong_tokens", "unclaimed")]
    return setting.total("draws") == sum(parts)


def test_every_wrong_token_is_counted_and_a_thousand_are_described():
    models, request = tiny(FOUR), Request((0, 1, 2) * 30, 0)
    result = verify_here(models, guidance.SWAPPED, [Settings(2)], [request])
    (setting,) = result.settings
    (judgement,) = setting.judgements
    due = models.noise(request)
    trace = guidance.SWAPPED(models, Settings(2)).decode(request, models.noise(request))
    own = sample_sequential(models.target, models.vae, request, due, trace.tokens_BL)  # along the decoder's tokens
    differ = int((trace.tokens_BL != own.tokens_BL).sum())
    assert differ > MOST_RECORDS
    assert (setting.total("ties"), setting.total("wrong_tokens"), setting.total("wrong_tensors")) == (0, differ, 90)
    assert add_up(setting)
    assert len(judgement.defects) == MOST_RECORDS + 90
    assert setting.total("defects") == differ + 90
    document = json.loads(result.to_json())
    for counts in (document, document["settings"][0]):
        assert (counts["draws"], counts["identical"]) == (2700, 2700 - differ)
        assert (counts["wrong_tokens"], counts["wrong_tensors"], counts["defects"]) == (differ, 90, differ + 90)
    assert f"0 ties, {differ} wrong tokens; 90 wrong tensors; {differ + 90} defects" in result.summary
    assert str(result).startswith(f"first defect: {result.first_divergence}\nDEFECT contract token-identical: ")
    result.against = "another"
    assert str(result).startswith("first difference: component guidance ")
    # what a decoder says stays on its line
    result.early.append(Divergence("crash", "ValueError: \x1b[8mhidden\nIDENTICAL", 0))
    assert (
        str(result).splitlines()[0]
        == r"first difference: component crash (ValueError: \x1b[8mhidden IDENTICAL) at seed 0"
    )


@pytest.mark.parametrize("policy", ["coupled", "rejection", "match:0.5", "handoff:4"])
def test_identical_is_equal_to_the_references_draw_on_the_same_prefix_under_every_contract(policy: str):
    models = tiny(FOUR)
    (setting,) = verify_here(models, build_decoder, [Settings(2, policy=policy)], [REQUEST]).settings
    tokens_BL = build_decoder(models, Settings(2, policy=policy)).decode(REQUEST, models.noise(REQUEST)).tokens_BL
    own = sample_sequential(models.target, models.vae, REQUEST, models.noise(REQUEST), tokens_BL)
    assert setting.total("identical") == int((tokens_BL == own.tokens_BL).sum())
    assert add_up(setting)
    assert (setting.total("unclaimed") > 0) is (policy != "coupled")


@pytest.mark.slow
def test_tokens_that_are_no_ties_because_they_are_many_are_wrong_tokens():
    models, request = digits().to("cpu", torch.bfloat16), Request((0,), 0)
    result = verify_here(models, lambda m, s: Blind(guidance.SWAPPED(m, s)), [Settings(5)], [request])
    assert add_up(result.settings[0])
    assert result.settings[0].total("wrong_tokens") == result.settings[0].total("defects") > 100


def test_nothing_drafted_is_inconclusive():
    result = verify_here(tiny(FOUR), lambda models, settings: Sequential(models), [Settings(2)], [REQUEST])
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.verdict.exit_status == 3
    assert "nothing was drafted" in result.inconclusive[0]


class Sequential:
    """The reference under test: right, but it drafts nothing."""

    contract = "token-identical"

    def __init__(self, models: ModelPair) -> None:
        self.models = models

    def decode(self, request: Request, noise) -> Trace:
        return sample_sequential(self.models.target, self.models.vae, request, noise)


def test_nothing_compared_is_inconclusive():
    result = verify_here(tiny(FOUR), healthy, [], [REQUEST])
    assert result.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    "defect",
    ["missing scale", "twice written", "short", "dtype", "out of range", "nan f_hat", "flat f_hat", "odd rows"],
)
def test_an_incomplete_trace_is_a_defect(defect: str):
    models = tiny(FOUR)
    trace = decoded(models, REQUEST, 2)
    if defect == "missing scale":
        trace.scale_writes_BS[1, 2] = 0
    elif defect == "twice written":
        trace.scale_writes_BS[0, 0] = 2
    elif defect == "short":
        trace.tokens_BL = trace.tokens_BL[:, :-1]
    elif defect == "dtype":
        trace.tokens_BL = trace.tokens_BL.int()
    elif defect == "out of range":
        trace.tokens_BL[2, 7] = models.target.config.V
    elif defect == "flat f_hat":
        trace.f_hat_BCPP = trace.f_hat_BCPP[:1]  # would broadcast
    elif defect == "odd rows":
        trace.intermediates.rows_RLV = trace.intermediates.rows_RLV[:-1]
    else:
        trace.f_hat_BCPP[0, 0, 0, 0] = torch.nan
    result = verify_here(models, lambda models, settings: Fixed(trace), [Settings(2)], [REQUEST])
    assert result.verdict is Verdict.DEFECT
    shown = {"nan f_hat": "f_hat", "flat f_hat": "f_hat", "dtype": "trace", "odd rows": "trace"}
    assert result.first_divergence.component == shown.get(defect, "scheduling")
    if defect == "missing scale":
        assert (result.first_divergence.image, result.first_divergence.scale) == (1, 2)


class Fixed:
    """A decoder that always returns one trace."""

    contract = "token-identical"

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def decode(self, request: Request, noise) -> Trace:
        return self.trace


def test_a_changed_token_without_intermediates_is_a_defect_at_its_place():
    models = tiny(FOUR)
    trace = decoded(models, REQUEST, 2)
    trace.intermediates = None
    trace.tokens_BL[1, 20] = (trace.tokens_BL[1, 20] + 1) % models.target.config.V
    first = verify_here(models, lambda models, settings: Fixed(trace), [Settings(2)], [REQUEST]).first_divergence
    assert (first.component, first.image, first.scale, first.position) == ("unknown", 1, 3, 20)


@pytest.mark.parametrize("side", ["draft", "target", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_a_defect_that_names_the_tensor(side: str, value: float):
    models = tiny(FOUR)
    name = "post_quant_conv.bias" if side == "vae" else "head.bias"
    network = getattr(models, side)
    weights = {**network.weights, name: network.weights[name].index_fill(0, torch.tensor([2]), value)}
    broken = replace(models, **{side: replace(network, weights=weights)})
    result = verified(broken, REQUEST)
    assert result.verdict is Verdict.DEFECT
    assert f"{side}.{name}" in result.first_divergence.detail


def test_non_finite_logits_are_a_defect_that_names_the_tensor():
    def poisoned(*arguments):
        return PARTS.build_combined_query(*arguments) * float("inf")

    result = verified(tiny(FOUR), REQUEST, replace(PARTS, build_combined_query=poisoned))
    assert result.verdict is Verdict.DEFECT
    assert "target.logits" in result.first_divergence.detail


def test_finite_weights_whose_logits_overflow_are_a_defect_not_a_crash():
    models = tiny(FOUR)
    target = with_weight(models.target, "head.weight", lambda weight_VD: weight_VD * 3e38)
    result = verified(replace(models, target=target), REQUEST)
    assert result.verdict is Verdict.DEFECT
    assert "target.logits" in result.first_divergence.detail


def test_a_decoder_that_refuses_the_request_is_bad_input():
    with pytest.raises(InputError, match="more_smooth"):
        decoded(tiny(FOUR), replace(REQUEST, more_smooth=True), 2)


@pytest.mark.parametrize("name", LAYOUTS)
def test_cached_float32_and_cache_free_float64_references_agree(name: str):
    models, request = tiny(LAYOUTS[name]), Request((0, 1, 2), 11)
    run = sample_sequential(models.target, models.vae, request, models.noise(request))
    wide = models.to("cpu", torch.float64)
    tokens_BL = sample_cachefree(wide.target, wide.vae, request, models.noise(request))
    assert torch.equal(run.tokens_BL, tokens_BL)


def test_cached_float32_and_cache_free_float64_references_agree_on_digits():
    models, request = digits(), Request((6,), 3)
    run = sample_sequential(models.target, models.vae, request, models.noise(request))
    wide = models.to("cpu", torch.float64)
    tokens_BL = sample_cachefree(wide.target, wide.vae, request, models.noise(request))
    assert torch.equal(run.tokens_BL, tokens_BL)


def test_a_slightly_wrong_guidance_weight_is_a_defect_whatever_the_budget_of_the_logits():
    """In bfloat16 the networks' budget is wide; guidance is checked on the decoder's own rows."""

    def nearly(rows_RnV, pyramid, cfg, first, last):
        return PARTS.guide(rows_RnV, pyramid, cfg * (1 + 1e-5), first, last)

    models = tiny(FOUR).to("cpu", torch.bfloat16)
    first = verified(models, REQUEST, replace(PARTS, guide=nearly)).first_divergence
    assert (first.component, first.scale) == ("guidance", 1)
    assert verified(models, REQUEST).verdict in (Verdict.IDENTICAL, Verdict.TIE)


class Blind:
    """A decoder that shows tokens and rounds, but no intermediates."""

    contract = "token-identical"

    def __init__(self, inner: Implementation, seed_off: int = 0) -> None:
        self.inner, self.seed_off = inner, seed_off

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        other = SeededNoise(replace(request, seed=request.seed + self.seed_off), noise.pyramid, noise.V, noise.device)
        trace = self.inner.decode(request, other if self.seed_off else noise)
        trace.intermediates = None
        return trace


@pytest.mark.slow
def test_many_ties_must_be_usual_ones():
    """In bfloat16 the largest error would excuse most draws of a wrong decoder that shows no logits."""
    models, request = digits().to("cpu", torch.bfloat16), Request((0, 3), 0)
    right = verify_here(models, lambda m, s: Blind(build_decoder(m, s)), [Settings(5)], [request])
    assert right.verdict is Verdict.TIE
    assert str(right).startswith("TIE ")
    assert right.settings[0].total("ties") >= MANY_TIES
    wrong = {
        "numbers": lambda m, s: Blind(build_decoder(m, s), seed_off=1),
        "halves": lambda m, s: Blind(guidance.SWAPPED(m, s)),
        "corner": lambda m, s: Blind(masks.CORNER(m, s)),
    }
    for name, factory in wrong.items():
        result = verify_here(models, factory, [Settings(5)], [request])
        assert result.verdict is Verdict.DEFECT, name
        assert result.settings[0].total("defects") > 100, name


def test_unusual_ties_by_hand():
    allowed_S = [Allowance(1.0, 0.1, 1e-6, "by hand")]

    def ties(*margins: float) -> list[Divergence]:
        return [Divergence("tie", "", 0, scale=0, margin=margin) for margin in margins]

    assert unusual_ties(ties(*[1.9] * (MANY_TIES - 1)), allowed_S) == []  # too few to tell
    assert unusual_ties(ties(*[0.1] * 20), allowed_S) == []
    assert unusual_ties(ties(*[-3.0] * 19, 0.3), allowed_S) == []  # a token that wins has no margin to explain
    usual, unusual = ties(*[0.05] * 10), ties(*[0.5] * 10)
    assert unusual_ties(usual + unusual, allowed_S) == unusual
