"""Infinity before the judge: the right decoder, one that rounds elsewhere, and planted bugs, each named by its part."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness import LikelihoodTest, Terms, verify
from harness.judge._bets import usual_alternatives
from harness.judge._verdict import Verdict
from harness.models import ModelPair, close_pair
from harness.models.infinity import transformer
from harness.models.infinity.transformer import InfinityTransformer
from harness.models.network import Condition
from harness.protocol import Request, Rows, ScaleGuidance, Settings, Trace
from harness.protocol.noise import Noise, NoiseBefore, Reading
from harness.reference.sequential import sample_sequential
from harness.rounding import quick_budget
from harness.speculative import DecodeState, Side
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder, build_decoder
from tests.helpers import decoder_factory, verify_here
from tests.unit.judge.planted_infinity import BUGS, REQUESTS, at
from tests.unit.speculative.test_infinity import GUIDANCE, REQUEST, TEXTS, pair


def single(patch: int = 1, rounds: bool = False) -> ModelPair:
    return pair(patch=patch, dtype=torch.float32, rounds=rounds)


@pytest.mark.parametrize("patch", [1, 2])
def test_the_harness_own_decoder_is_identical(patch: int):
    settings = [Settings(1), Settings(2, bonus=True), Settings(5)]
    result = verify_here(single(patch), build_decoder, settings, REQUESTS)
    assert result.verdict is Verdict.IDENTICAL, result.first_divergence


def moved(models: ModelPair, by: float, begin: str = "") -> ModelPair:
    """Return the pair as a machine of another kind has it: every weight of the target another one, by an ulp or so."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: w * (1 + by * torch.randn(w.shape, generator=generator)) if name.startswith(begin) else w
        for name, w in models.target.weights.items()
    }
    return replace(models, target=InfinityTransformer(models.target.config, weights))


def test_values_at_the_edge_of_a_step_are_forgiven_and_no_more():
    models = single(rounds=True)
    assert models.unrounded().target.config == single().target.config
    request = replace(REQUEST, labels=(0, 1, 2) * 4)

    def verdict(by: float, begin: str = "") -> Verdict:
        def elsewhere(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
            return build_decoder(moved(models, by, begin), settings)

        return verify_here(models, elsewhere, [Settings(5)], [request, replace(request, seed=1)]).verdict

    assert verdict(1e-7) in (Verdict.IDENTICAL, Verdict.TIE)
    assert verdict(1e-5, "text_proj_for_sos") in (Verdict.IDENTICAL, Verdict.TIE)  # some values of the condition
    assert quick_budget(models).rows < 0.01
    assert verdict(1e-2) is Verdict.DEFECT


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught_and_named(name: str):
    bug, component, request = BUGS[name]
    models = single(2 if "patch" in name else 1)
    models = replace(models, draft=models.target)  # later scales of a window are accepted, if anything is
    result = verify_here(models, decoder_factory(bug), [Settings(3)], [request])
    assert result.verdict is Verdict.DEFECT
    first = result.first_divergence
    assert first is not None
    assert first.component == component, first


@pytest.mark.parametrize(("side", "component"), [("target", "level"), ("draft", "guidance")])  # of two chunks and one
def test_levels_between_blocks_are_named_where_more_than_guidance_reads_them(side: str, component: str):
    models = single()
    network = getattr(models, side)
    models = replace(models, target=replace(network, config=replace(network.config, levels_once=False)))
    bug, _, request = BUGS["levels counted from a pass's first scale"]
    found = verify_here(replace(models, draft=models.target), decoder_factory(bug), [Settings(3)], [request])
    first = found.first_divergence
    assert first is not None
    assert first.component == component
    assert first.detail.endswith("levels counted from the first scale of a pass")


@pytest.mark.parametrize(
    ("name", "weights"),
    [("temperature left out", "1·cond − 0·uncond"), ("weight of the first scale everywhere", "6·cond − 4·uncond")],
)
def test_weights_of_guidance_are_said_with_those_that_are_due(name: str, weights: str):
    first = verify_here(single(), decoder_factory(BUGS[name][0]), [Settings(3)], [REQUEST]).first_divergence
    assert first is not None
    due = "(w·cond + (1 − w)·uncond)/τ with w = 1 and τ = 0.5 is due"
    assert first.detail == f"guided logits of scale 1 are not those of their rows: they are {weights}; {due}"


class TextsOfTheFirst(Side):
    """Images that go on alone attend to the texts of the batch's first rows."""

    def condition_of(self, images: list[int]) -> Condition:
        condition = super().condition_of(images)
        return replace(condition, texts=self.condition.texts[: len(condition.texts)])


class Interleaved(Side):
    """Images that go on alone have both rows side by side, as if halves were."""

    def condition_of(self, images: list[int]) -> Condition:
        B = len(self.calls)
        rows = [first + b for b in images for first in (0, B)]
        return self.condition if len(images) == B else self.condition.rows(torch.tensor(rows))


class Reversed(Side):
    """Images that go on alone are read from the last to the first, unconditional ones too."""

    def condition_of(self, images: list[int]) -> Condition:
        condition = super().condition_of(images)
        return condition if len(images) == len(self.calls) else condition.rows(torch.arange(2 * len(images)).flip(0))


@pytest.mark.parametrize(
    ("side", "component", "asked"),
    [
        (TextsOfTheFirst, "text", REQUEST),
        (Interleaved, "rows", REQUEST),
        (Interleaved, "rows", at(-1)),
        (Reversed, "rows", REQUEST),
    ],
)
def test_the_rows_of_a_batch_that_parts_are_named(side: type[Side], component: str, asked: Request):
    class Decoder(SpeculativeDecoder):
        def begin(self, request: Request, noise: Noise) -> DecodeState:
            state = super().begin(request, noise)
            state.target.__class__ = side
            return state

    models = close_pair(single(), 0.003)
    requests = [replace(asked, seed=seed) for seed in range(3)]
    result = verify_here(models, lambda pair, _: Decoder(pair, DecoderOptions(2)), [Settings(2)], requests)
    assert result.first_divergence is not None
    assert result.first_divergence.component == component, result.first_divergence


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[-1:] * 3])  # of one row, so that one row more pads nothing
def test_a_network_that_is_wrong_in_longer_passes_is_asked_in_none(
    texts: tuple[Rows, ...], monkeypatch: pytest.MonkeyPatch
):
    """Guidance between blocks is off in passes whose first scale has none: decoder and judge share the network."""
    right = transformer.guided_between

    def off_where_the_first_is(x_RnD: Tensor, guidance: ScaleGuidance, level_n: Tensor) -> Tensor:
        return x_RnD if guidance.weights[int(level_n[0])] == 1 else right(x_RnD, guidance, level_n)

    models = single()
    quick_budget(models)
    monkeypatch.setattr(transformer, "guided_between", off_where_the_first_is)
    weights = (1.0, 3.0, 2.0, 3.0, 1.5)
    request = replace(at(-1), texts=texts, scale_guidance=replace(at(-1).scale_guidance, weights=weights))
    found = verify_here(replace(models, draft=models.target), build_decoder, [Settings(3)], [request]).first_divergence
    assert found is not None
    assert (found.component, found.scale) == ("guidance", 1), found


@pytest.mark.parametrize("patch", [1, 2])
def test_the_channel_of_a_wrong_f_hat_is_said_where_a_position_has_no_patch(patch: int):
    class Decoder(SpeculativeDecoder):
        def decode(self, request: Request, noise: Noise) -> Trace:
            trace = super().decode(request, noise)
            f_hat_SBCPP = trace.shown.f_hat_SBCPP.clone()
            f_hat_SBCPP[-1, 0, 2, -1, 0] += 0.5
            return replace(trace, intermediates=replace(trace.shown, f_hat_SBCPP=f_hat_SBCPP))

    models = single(patch)
    first = verify_here(models, lambda pair, _: Decoder(pair, DecoderOptions(2)), [Settings(2)], [REQUEST])
    assert first.first_divergence is not None
    found, (h, w) = first.first_divergence, models.pyramid.sides[-1]
    assert (found.component, found.scale, found.image) == ("f_hat", models.pyramid.S - 1, 0)
    if patch == 1:
        assert (found.position, found.channel) == (models.pyramid.begin(found.scale) + (h - 1) * w, 2)


class Turned(NoiseBefore):
    """Numbers of a scale channel by channel."""

    def read(self, numbers: Reading, si: int, stream: str, reader: str) -> Tensor:
        E_BlV = numbers(si, stream, reader)
        return E_BlV.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)


def test_numbers_in_the_order_of_channels_are_named():
    class Decoder(SpeculativeDecoder):
        def decode(self, request: Request, noise: Noise) -> Trace:
            return super().decode(request, Turned(noise))

    def build(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
        return Decoder(models, DecoderOptions(3))

    first = verify_here(single(), build, [Settings(3)], [REQUEST]).first_divergence
    assert first is not None
    assert first.component == "noise", first


@pytest.mark.parametrize("places", [(-1,), (0, -1)])
def test_guidance_between_blocks_is_bet_on_by_passes_of_its_own(places: tuple[int, ...]):
    models, asked_for = single(), at(*places)
    stronger = replace(asked_for.scale_guidance, weights=tuple(w + 0.5 for w in GUIDANCE.weights))
    tests = LikelihoodTest(models, asked_for), LikelihoodTest(models, asked_for)
    for test, guidance in zip(tests, (asked_for.scale_guidance, stronger), strict=True):
        request = replace(asked_for, labels=(0, 1, 2, 0) * 16, scale_guidance=guidance)
        decoded = sample_sequential(models.target, models.vae, request, models.noise(request))
        test.take(decoded.tokens_BL, request.labels)
    right, wrong = tests
    assert right.verdict is not Verdict.DEFECT
    assert all(math.isfinite(n) for a, n in right.wealth.images_to_find().items() if a.required)
    assert right.images_to_find()["guidance weights were +0.2"] < 1000
    assert wrong.verdict is Verdict.DEFECT
    assert "guidance weights were +0.2" in str(wrong)


@pytest.mark.parametrize("places", [(), (0,), (-1,)])
def test_wrong_rows_are_judged_wherever_guidance_acts(places: tuple[int, ...]):
    class Wrong(SpeculativeDecoder):
        def decode(self, request: Request, noise: Noise) -> Trace:
            trace = super().decode(request, noise)
            assert trace.intermediates is not None
            rows_RLV = trace.intermediates.rows_RLV.clone()
            rows_RLV[:, 5:] *= 1.5
            return replace(trace, intermediates=replace(trace.intermediates, rows_RLV=rows_RLV))

    result = verify_here(single(), lambda pair, _: Wrong(pair, DecoderOptions(1)), [Settings(1)], [at(*places)])
    first = result.first_divergence
    assert (result.verdict, first.scale) == (Verdict.DEFECT, 1), first
    assert first.component != "crash"


@pytest.mark.parametrize(
    ("request_", "component"),
    [(at(0), "rows"), (at(-1), "mask or network"), (REQUESTS[-1], "rows")],  # two rows, mixed on their way, and one
)
def test_rows_that_are_given_inputs_of_others_are_named_where_they_are_not_mixed(request_: Request, component: str):
    class Turns(InfinityTransformer):
        def hidden(self, x_RnD: Tensor, *given: object) -> Tensor:
            return super().hidden(x_RnD.roll(1, 0), *given)

    def factory(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
        target = Turns(models.target.config, models.target.weights)
        return build_decoder(replace(models, target=target), settings)

    first = verify_here(single(), factory, [Settings(3)], [request_]).first_divergence
    assert first.component == component, first


def test_guidance_that_acts_nowhere_is_not_bet_on():
    assert not any("guidance" in each.words for each in usual_alternatives(at(1), 2))


def test_the_design_that_is_asked_unasked_meets_places_texts_and_filters():
    result = verify(single(), terms=Terms(in_process=True, laws=0))
    assert result.verdict is Verdict.IDENTICAL, (result.first_divergence, result.reasons)
    assert set(result.exercised.missing) == {"more_smooth", "laws", "other dtypes"}


class Flipping(SpeculativeDecoder):
    """Flips one bit of what it returns."""

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        super().__init__(models, DecoderOptions(settings.draft_len))

    def decode(self, request: Request, noise: Noise) -> Trace:
        trace = super().decode(request, noise)
        trace.tokens_BL[0, self.models.pyramid.draws.begin(1)] ^= 1
        return trace


@pytest.mark.parametrize("filtered", [{}, {"top_k": 1}, {"top_p": 0.6}])
def test_one_flipped_bit_is_no_accepted_draft(filtered: dict[str, float]):
    """Of two values the wrong one is the draft's about every second time."""
    found = verify_here(single(), Flipping, [Settings(2)], [replace(REQUEST, **filtered)])  # type: ignore[arg-type]
    assert found.first_divergence is not None
    assert (found.first_divergence.component, found.first_divergence.scale) == ("draw", 1)
