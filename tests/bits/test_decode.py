"""The toy family goes the whole way: reference, decoder, judge, run file and page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.laws._enumeration import output_law
from harness.models import ModelPair
from harness.protocol import Request, Settings
from harness.protocol.pyramid import ScalePyramid
from harness.reference import joint_law, law_distance, sample_cachefree, sample_handoff
from harness.reference._handoff import HandOff
from harness.reference.sequential import sample_sequential
from harness.rounding import certifying_networks, certifying_precision, quick_budget
from harness.rounding._precision import Certifying
from harness.speculative._policies import parse_policy
from harness.speculative.sampler import DecoderOptions, build_decoder
from tests.bits import fast, plain
from tests.bits.cases import bits_pair
from tests.bits.plain import TEXTS, guidance_of
from tests.helpers import command, decoder_factory, verify_here
from tests.unit.report.reading import read
from tests.unit.report.sample_runs import page_of, run

# rectangles that lie and stand, and one that is smaller than the one before it
LAYOUT = ScalePyramid(sides=((1, 1), (2, 1), (3, 2), (2, 3), (4, 5)), channels=3)
MODELS = bits_pair(LAYOUT, draft="near")
REQUEST = Request((0, 1, 3, 2), 5, texts=TEXTS, scale_guidance=guidance_of(1.0, LAYOUT))
UNGUIDED = replace(REQUEST, scale_guidance=guidance_of(0.0, LAYOUT))
FILTERED = replace(REQUEST, filters=((0, 0.0), (1, 0.0), (0, 0.9), (0, 0.0), (2, 0.6)))


def pair(dtype: torch.dtype = torch.float64, draft: str = "near", rounds: bool = False) -> ModelPair:
    return bits_pair(LAYOUT, draft=draft, rounds=rounds).to("cpu", dtype)


@pytest.mark.parametrize("request_", [REQUEST, FILTERED, UNGUIDED, replace(REQUEST, order="batch")])
def test_three_ways_of_decoding_give_the_same_bits(request_: Request):
    models = pair()
    expected = sample_sequential(models.target, models.vae, request_, models.noise(request_))
    assert expected.tokens_BL.shape == (4, 3 * LAYOUT.L) == (4, 105)
    assert expected.f_hat_BCPP.shape == (4, 3, 4, 5)
    assert torch.equal(
        sample_cachefree(models.target, models.vae, request_, models.noise(request_)), expected.tokens_BL
    )
    for settings in (Settings(1), Settings(3), Settings(2, bonus=True), Settings(5)):
        decoded = build_decoder(models, settings).decode(request_, models.noise(request_))
        assert torch.equal(decoded.tokens_BL, expected.tokens_BL), settings
        counted = [sum(t.accepted_tokens + t.corrected_tokens + t.bonus_tokens for t in r) for r in decoded.rounds]
        assert counted == [105] * 4
        assert all(rows >= LAYOUT.L for rows in decoded.target_rows)
    handed = sample_handoff(models, request_, models.noise(request_), HandOff(0, 3))
    assert torch.equal(handed.tokens_BL, expected.tokens_BL)


def test_a_draw_has_its_own_number_by_position_channel_and_value():
    alone = MODELS.noise(REQUEST).exponential(2, "token", "test")
    assert alone.shape == (4, 18, 2)
    batch = replace(REQUEST, order="batch", seed=9)
    generator = torch.Generator().manual_seed(9)
    for si in LAYOUT:
        h, w = LAYOUT.sides[si]
        E = torch.empty(4 * h * w * 3, 2).exponential_(1, generator=generator)
        assert torch.equal(MODELS.noise(batch).exponential(si, "token", "test").flatten(0, 1), E)


def test_both_sides_put_every_row_at_the_same_place():
    network = MODELS.target
    assert plain.positions(network, 1, 4).tolist() == fast.positions(network, 1, 4).tolist()
    assert plain.positions(network, 2, 2).tolist() == [[0, 0], [0, 2], [1, 0], [1, 2], [3, 0], [3, 2]]


@pytest.mark.parametrize(
    ("dtype", "policy", "verdict"),
    [
        (torch.float64, "coupled", Verdict.IDENTICAL),
        (torch.float32, "coupled", Verdict.IDENTICAL),
        (torch.float32, "greedy", Verdict.IDENTICAL),
        (torch.float32, "rejection", Verdict.INCONCLUSIVE),
        (torch.float32, "match:0.6+partial", Verdict.CONSISTENT),
    ],
)
def test_the_decoder_is_right(dtype: torch.dtype, policy: str, verdict: Verdict):
    settings = [Settings(length, bonus, policy) for length, bonus in ((2, False), (3, True))]
    result = verify_here(pair(dtype), build_decoder, settings, [REQUEST, FILTERED])
    assert result.verdict is verdict, result.first_divergence


def test_where_nothing_is_guided_unconditional_rows_do_not_run():
    models, bytes_held, calls = pair(torch.float32), {}, []
    for request in (REQUEST, UNGUIDED):
        noise = models.noise(request)
        traces = [
            sample_sequential(models.target, models.vae, request, noise),
            build_decoder(models, Settings(3)).decode(request, noise),
        ]
        shapes = {(len(t.intermediates.x_RLD), len(t.intermediates.rows_RLV)) for t in traces if t.intermediates}
        assert shapes == {(request.R, request.R)}
        bytes_held[request.R] = traces[1].cache_bytes["target"]
    assert bytes_held == {8: 2 * bytes_held[4], 4: bytes_held[4]}
    assert UNGUIDED.rows_of(1, 2) == [1, 2]
    assert REQUEST.rows_of(1, 2) == [1, 2, 5, 6]
    settings = [Settings(length, bonus, policy) for length, bonus, policy in
                ((2, False, "coupled"), (3, True, "greedy"), (2, True, "rejection"))]  # fmt: skip
    result = verify_here(models, build_decoder, settings, [UNGUIDED])
    assert result.verdict is Verdict.INCONCLUSIVE, result.first_divergence  # how many images would decide on the law

    def both_halves(network, request, labels_B):
        calls.append(len(labels_B))
        return fast.condition_rows(network, REQUEST, labels_B)

    wrong = decoder_factory(replace(fast.PARTS, condition_rows=both_halves))
    first = verify_here(models, wrong, [Settings(2)], [UNGUIDED]).first_divergence
    assert calls
    assert first is not None
    assert first.component in ("crash", "form")


def test_rounding_that_belongs_to_the_law_is_done_by_its_oracle_too():
    models = pair(torch.float32, rounds=True)
    assert verify_here(models, build_decoder, [Settings(3, True)], [REQUEST]).verdict in (
        Verdict.IDENTICAL,
        Verdict.TIE,
    )
    labels_B, request = torch.tensor(REQUEST.labels), REQUEST
    tokens_BL = sample_sequential(models.target, models.vae, request, models.noise(request)).tokens_BL

    def far(by: Certifying, rounds: bool) -> float:
        with certifying_networks(pair(torch.float32, rounds=rounds), by) as (network, vae):
            exact = sample_sequential(network, vae, request, models.noise(request), tokens_BL)
        own = sample_sequential(models.target, models.vae, request, models.noise(request), tokens_BL)
        assert exact.intermediates is not None
        assert own.intermediates is not None
        return float((exact.intermediates.rows_RLV - own.intermediates.rows_RLV).square().mean().sqrt())

    by = certifying_precision(models)
    assert by.dtype is torch.float64
    assert len(labels_B) == 4
    # the same steps are taken, but for the few at whose edge float32 and float64 part
    assert 20 * far(by, rounds=True) < far(by, rounds=False)


def test_budgets_are_measured_with_a_request_of_the_family():
    budget = quick_budget(pair(torch.float32))
    assert 0 < budget.rows < 1e-4
    guidance = REQUEST.guidance
    assert budget.guided(guidance, 1.0, 4).logits == pytest.approx(3 / 1.25 * budget.rows)


@pytest.mark.parametrize("policy", ["coupled", "rejection"])
def test_the_law_of_the_decoder_is_the_targets_bit_by_bit(policy: str):
    models = bits_pair(ScalePyramid(sides=((1, 1), (1, 1)), channels=3)).to("cpu", torch.float64)
    request = Request((1,), texts=TEXTS, scale_guidance=guidance_of(0.5, models.pyramid), filters=((0, 0.0), (0, 0.95)))
    for draft_len, bonus in ((1, False), (1, True), (2, False)):
        options = DecoderOptions(draft_len, bonus, parse_policy(policy))
        law, branches = output_law(models, request, options, fast.PARTS)
        expected = joint_law(models, request)
        assert branches >= len(expected) > 32
        assert law_distance(law, expected) < 1e-12


def test_a_run_is_kept_and_its_page_shows_rectangles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models, path = pair(torch.float32), tmp_path / "a.db"

    def wrong(models, settings):
        bent = replace(fast.PARTS, draw=lambda probs, E: fast.PARTS.draw(probs, E[:, :1].expand_as(E)))
        return build_decoder(models, settings).__class__(models, DecoderOptions(2), bent)

    monkeypatch.setattr("tests.unit.report.sample_runs.Request", lambda labels, seed: replace(REQUEST, seed=seed))
    result = run(path, wrong, models=models)
    first = result.first_divergence
    assert first is not None
    assert first.component == "draw"
    assert first.channel in (0, 1, 2)
    assert f"position {first.position}, channel {first.channel}: token" in str(first)
    page = read(page_of(path))
    assert "4 × 5 × 3" in page.words
    assert "row" in page.words
    assert f"channel {first.channel}" in page.words
    maps = [
        attributes["viewbox"] for attributes in page.all("svg") if attributes.get("viewbox", "").startswith("0 0 5")
    ]
    assert "0 0 5 4" in maps
    assert command(monkeypatch, "report", str(path), "--html", str(tmp_path / "a.html")) == 0


BAD = {
    "guided inside": (
        replace(REQUEST, scale_guidance=replace(guidance_of(1.0, LAYOUT), places=(0, -1))),
        "places=(0, -1): guides elsewhere than the family bits does, which is at the logits; drop them",
    ),
    "cfg alone": (Request((0,), texts=TEXTS), "texts=3: bits are drawn of texts, and guided by scale; pass both"),
    "no texts": (replace(REQUEST, texts=()), "texts=0: bits are drawn of texts, and guided by scale; pass both"),
    "soft codes": (replace(REQUEST, more_smooth=True), "more_smooth=given: is nothing that the family bits reads"),
    "another text": (replace(REQUEST, labels=(4,)), "labels=4: must lie in 0..3 (3 is unconditional)"),
    "too few weights": (replace(REQUEST, scale_guidance=guidance_of(1.0, ScalePyramid((1, 2)))), "one entry a scale"),
    "too few filters": (replace(REQUEST, filters=((1, 0.0),)), "must hold one entry a scale (5)"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_family_does_not_read_is_refused_in_one_line(name: str):
    request, said = BAD[name]
    decoders = [
        lambda: sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request)),
        lambda: build_decoder(MODELS, Settings(2)).decode(request, MODELS.noise(request)),
    ]
    for decode in decoders:
        with pytest.raises(InputError) as caught:
            decode()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
