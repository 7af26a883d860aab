"""Contract A over random settings: pyramids, V, draft lengths, batches, guidance, filters, drafts of any kind."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid
from harness.reference.sequential import sample_sequential
from harness.speculative._policies import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.toy import ToyTransformer, toy_pair

DRAFTS = ("equal", "near", "far", "adversarial", "stubborn")
USUAL, ALL = 500, 2000
ROUNDING = 1e-12  # float64 convolutions over other batch sizes: tens of units of 2^-52 on values near 10


@dataclass(frozen=True)
class Setting:
    """One random setting; a function of its number alone."""

    models: ModelPair
    request: Request
    options: DecoderOptions
    draft: str


def change_table(network: ToyTransformer, table: torch.Tensor) -> ToyTransformer:
    return replace(network, weights={**network.weights, "table": table})


def pair_of(draft: str, pyramid: ScalePyramid, V: int, seed: int) -> ModelPair:
    models: Any = toy_pair(pyramid, V, seed, {"near": 0.3, "far": 3.0}.get(draft, 0.0))
    table = models.target.weights["table"]
    if draft == "adversarial":  # prefers what the target avoids
        models = replace(models, draft=change_table(models.draft, -5 * table))
    elif draft == "stubborn":  # always proposes token 0
        fixed = torch.zeros_like(table)
        fixed[..., 0] = 1e4
        models = replace(models, draft=change_table(models.draft, fixed))
    return models


def setting(number: int) -> Setting:
    pick = random.Random(number)
    sides = sorted(pick.sample(range(2, 8), pick.randint(0, 4)))
    pyramid = ScalePyramid((1, *sides))
    S, V, B = pyramid.S, pick.randint(2, 40), pick.randint(1, 4)
    lengths: list[int | str] = [
        pick.randint(1, S),
        "/".join(str(pick.randint(1, S)) for _ in range(S)),
        "dynamic",
        f"dynamic:{(low := pick.randint(1, S))}:{pick.randint(low, S)}",
    ]
    request = Request(
        tuple(pick.randint(0, 2) for _ in range(B)),
        seed=pick.randrange(2**40),
        cfg=pick.choice([0.0, 1.5, 4.0, -1.0]),
        top_k=pick.choice([0, 0, 1, pick.randint(1, V)]),
        top_p=pick.choice([0.0, 0.0, 0.3, 0.9, 1.0]),
        order=pick.choice(["image", "batch"]),  # type: ignore[arg-type]
    )
    policy = parse_policy("greedy" if number % 5 == 4 else "coupled")
    draft = pick.choice(DRAFTS)
    models = pair_of(draft, pyramid, V, pick.randrange(1000))
    return Setting(models, request, DecoderOptions(pick.choice(lengths), pick.random() < 0.5, policy), draft)


def check(number: int) -> tuple[bool, bool]:
    """Compare one setting with the reference; tell whether anything was accepted and anything corrected."""
    now = setting(number)
    models, request, options = now.models, now.request, now.options
    greedy = options.policy.greedy
    expected = sample_sequential(models.target, models.vae, request, models.noise(request), greedy=greedy)
    actual = SpeculativeDecoder(models, options).decode(request, models.noise(request))
    assert torch.equal(actual.tokens_BL, expected.tokens_BL), now
    assert float((actual.f_hat_BCPP - expected.f_hat_BCPP).abs().max()) < ROUNDING, now
    assert bool((actual.scale_writes_BS == 1).all()), now
    S, L = models.pyramid.S, models.pyramid.L
    for image, rounds in enumerate(actual.rounds):
        covered = [turn.first + k for turn in rounds for k in range(turn.finished)]
        assert covered == list(range(S)), now
        assert all(turn.finished >= 1 for turn in rounds), now
        counts = [sum(getattr(t, f"{kind}_tokens") for t in rounds) for kind in ("accepted", "corrected", "bonus")]
        assert sum(counts) == L, now
        assert len(rounds) == actual.target_calls[image] <= S, now
        if now.draft == "equal":
            assert not any(turn.corrected for turn in rounds), now
    return (
        any(turn.accepted for rounds in actual.rounds for turn in rounds),
        any(turn.corrected for rounds in actual.rounds for turn in rounds),
    )


@pytest.mark.parametrize("first", range(0, USUAL, 100))
def test_tokens_equal_the_references_over_random_settings(first: int):
    seen = [check(number) for number in range(first, first + 100)]
    assert any(accepted for accepted, _ in seen)
    assert any(corrected for _, corrected in seen)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(USUAL, ALL, 100))
def test_tokens_equal_the_references_over_the_rest_of_two_thousand_settings(first: int):
    for number in range(first, first + 100):
        check(number)


def test_the_settings_cover_what_they_are_meant_to():
    sampled = [setting(number) for number in range(200)]
    assert {now.draft for now in sampled} == set(DRAFTS)
    assert {now.models.pyramid.S for now in sampled} == {1, 2, 3, 4, 5}
    assert {now.options.bonus for now in sampled} == {True, False}
    assert {now.options.policy.name for now in sampled} == {"coupled", "greedy"}
    assert {type(now.options.draft_len) for now in sampled} == {int, str}
    assert {now.request.B for now in sampled} == {1, 2, 3, 4}


def test_the_comparison_sees_a_decoder_that_is_wrong():
    """The toys are no toys where it counts: every planted bug of the production parts changes their tokens."""
    from harness.decoders._factory import Settings
    from harness.mutants import guidance, masks, positions, state

    request = Request((0, 1), 3)
    models = toy_pair(ScalePyramid((1, 2, 3, 5)), 17, 5, apart=0.3)
    expected = sample_sequential(models.target, models.vae, request, models.noise(request)).tokens_BL
    for mutant in (positions.OFFSET, guidance.SWAPPED, state.TWICE, masks.CORNER, state.STALE):
        trace = mutant(models, Settings(2)).decode(request, models.noise(request))
        assert not torch.equal(trace.tokens_BL, expected), mutant.id
