"""Contract B, exactly: the decoder's joint law over all tokens, by walking every branch, against the target's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import InputError, NoiseError
from harness.judge import Broken
from harness.laws._enumeration import output_law
from harness.models._pair import ModelPair
from harness.protocol._decoder import Contract
from harness.protocol._request import Request
from harness.protocol.noise import ACCEPT, CORRECT, DRAFT, TOKEN, Noise
from harness.protocol.pyramid import ScalePyramid
from harness.reference._cachefree import JointLaw, joint_law, law_distance
from harness.speculative._accept import Acceptance, Policy, Proposal, Window
from harness.speculative._policies import COUPLED, REJECTION, accept_rejection, parse_policy, race
from harness.speculative._steps import draw, filter_logits
from harness.speculative.parts import PARTS, Parts
from harness.speculative.rejection import keep_drafted, residual
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.helpers import some
from tests.toy import NEVER, as_pair, toy_pair, toy_transformer

EXACT = 1e-12  # sums of a few thousand float64 products of at most 30 factors round to about 1e-16
SEEN = 1e-3  # a wrong law must be this far off in some outcome: nothing that rounding could do
REQUEST = Request((1,), 0, cfg=1.5)
SMALL, TALL = ScalePyramid((1, 2)), ScalePyramid((1, 2, 3))


@lru_cache(maxsize=4)
def small() -> ModelPair:
    return toy_pair(SMALL, 3, seed=0)


@lru_cache(maxsize=4)
def tall(apart: tuple[int, ...], certain: int = 0) -> ModelPair:
    """Return a pair with V = 2 whose laws differ at the positions `apart`; the last `certain` tokens are fixed."""
    generator = torch.Generator().manual_seed(7)
    target = torch.randn(3, TALL.L, 2, generator=generator, dtype=torch.float64)
    target[:, TALL.L - certain :, 1] = NEVER
    draft = target.clone()
    draft[:, apart] += torch.randn(3, len(apart), 2, generator=generator, dtype=torch.float64)
    return as_pair(toy_transformer(TALL, draft, 1.0), toy_transformer(TALL, target, 1.0))


def law_of(models: ModelPair, options: DecoderOptions, request: Request = REQUEST, **change: Any) -> JointLaw:
    """Return the decoder's law, which must at least be one."""
    law, _ = output_law(models, request, options, **change)
    assert abs(sum(law.values()) - 1) < EXACT
    return law


@pytest.mark.parametrize(
    ("policy", "draft_len", "bonus"),
    [("rejection", 1, False), ("rejection", 2, False), ("rejection", "dynamic", True), ("coupled", 2, False)],
)
def test_the_joint_law_is_the_targets(policy: str, draft_len: int | str, bonus: bool):
    law = law_of(small(), DecoderOptions(draft_len, bonus, parse_policy(policy)))
    expected = joint_law(small(), REQUEST)
    assert len(expected) == 3**5
    assert law_distance(law, expected) < EXACT


@pytest.mark.parametrize("draft_len", [1, 3, "2/1/1"])
def test_the_joint_law_of_three_scales_is_the_targets(draft_len: int | str):
    models = tall((0, 1, 3, 4, 5, 6), certain=7)
    law = law_of(models, DecoderOptions(draft_len, policy=REJECTION))
    expected = joint_law(models, REQUEST)
    assert len(expected) == 2**7
    assert law_distance(law, expected) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize(("draft_len", "apart"), [(3, (0, 1, 9)), (1, (0, 4, 13))])
def test_the_joint_law_of_all_fourteen_tokens_is_the_targets(draft_len: int, apart: tuple[int, ...]):
    models = tall(apart)
    law = law_of(models, DecoderOptions(draft_len, policy=REJECTION))
    expected = joint_law(models, REQUEST)
    assert len(expected) == 2**14
    assert law_distance(law, expected) < EXACT


@pytest.mark.parametrize("words", [{"top_k": 2}, {"top_p": 0.7}, {"top_k": 2, "top_p": 0.8, "cfg": 4.0}])
def test_the_joint_law_is_the_targets_under_guidance_and_filters(words: dict[str, Any]):
    request = replace(REQUEST, **words)
    expected = joint_law(small(), request)
    assert len(expected) < 3**5
    assert law_distance(law_of(small(), DecoderOptions(2, policy=REJECTION), request), expected) < EXACT


@pytest.mark.parametrize("gap", ["adversarial", "equal"])
def test_the_law_does_not_depend_on_the_drafts_quality(gap: str):
    models = toy_pair(SMALL, 2, seed=3, apart=0.0)
    if gap == "adversarial":  # the draft prefers what the target avoids
        table = -3 * models.target.weights["table"]
        models = replace(models, draft=replace(models.draft, weights={**models.draft.weights, "table": table}))
    law, branches = output_law(models, REQUEST, DecoderOptions(2, policy=REJECTION))
    assert law_distance(law, joint_law(models, REQUEST)) < EXACT
    assert (branches == 2**5) is (gap == "equal")  # equal laws leave nothing to reject


def test_a_residual_that_nobody_normalised_is_the_same_law_as_a_race_has_it():
    parts = replace(PARTS, residual=lambda draft_BnV, target_BnV: (target_BnV - draft_BnV).clamp_min(0))
    law = law_of(small(), DecoderOptions(1, policy=REJECTION), parts=parts)
    assert law_distance(law, joint_law(small(), REQUEST)) < EXACT


# Wrong variants.


def of_the_target(draft_BnV: Tensor, target_BnV: Tensor) -> Tensor:
    return target_BnV


def of_absolute_differences(draft_BnV: Tensor, target_BnV: Tensor) -> Tensor:
    gap_BnV = (target_BnV - draft_BnV).abs()
    return gap_BnV / gap_BnV.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Renamed:
    """Numbers in which one stream is read in another's place."""

    noise: Noise
    streams: dict[str, str]

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        return self.noise.exponential(si, self.streams.get(stream, stream), reader)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        return self.noise.uniform(si, self.streams.get(stream, stream), reader)

    def labels(self, classes: int) -> Tensor:
        return self.noise.labels(classes)


def accept_under(streams: dict[str, str]):
    """Return the rejection rule that reads other streams than its own."""

    def accept(parts: Parts, proposal: Proposal, target_bnV: Tensor, window: Window) -> Acceptance:
        return accept_rejection(parts, proposal, target_bnV, replace(window, noise=Renamed(window.noise, streams)))

    return accept


def wrong_policy(**change: Any) -> Policy:
    """Return a changed rejection policy; under contract B's ledger some of them could not run at all."""
    return replace(REJECTION, contract=Contract.QUALITY, **change)


def one_u(parts: Parts) -> Parts:
    """Let all tokens of a scale read the first one's u."""

    def keep(u_Bn: Tensor, draft_Bn: Tensor, target_Bn: Tensor) -> Tensor:
        return parts.keep_drafted(u_Bn[:, :1].expand_as(u_Bn), draft_Bn, target_Bn)

    return replace(parts, keep_drafted=keep)


def always_redrawn(parts: Parts) -> Parts:
    """Accept by target/draft, but test the draft's chance against the target's (the ratio upside down)."""

    def keep(u_Bn: Tensor, draft_Bn: Tensor, target_Bn: Tensor) -> Tensor:
        return parts.keep_drafted(u_Bn, target_Bn, draft_Bn)

    return replace(parts, keep_drafted=keep)


WRONG: dict[str, dict[str, Any]] = {
    "residual of the absolute differences": {"parts": replace(PARTS, residual=of_absolute_differences)},
    "resampled from the target's law": {"parts": replace(PARTS, residual=of_the_target)},
    "one u for all tokens": {"prepare": one_u},
    "ratio upside down": {"prepare": always_redrawn},
    "shared noise with u < target/draft": {"policy": wrong_policy(propose=race, accept=accept_under({CORRECT: TOKEN}))},
    "u read from the draft's own numbers": {"policy": wrong_policy(accept=accept_under({ACCEPT: DRAFT}))},
}


@pytest.mark.parametrize("name", some(3, list(WRONG)))
def test_a_wrong_variant_has_another_law(name: str):
    change = dict(WRONG[name])
    options = DecoderOptions(1, policy=change.pop("policy", REJECTION))
    assert law_distance(law_of(small(), options, **change), joint_law(small(), REQUEST)) > SEEN


def test_a_draft_law_declared_before_the_filter_has_another_law():
    request = replace(REQUEST, top_k=2)

    def filtered(probs_bnV: Tensor) -> Tensor:
        return filter_logits(probs_bnV.log(), 2, 0.0).softmax(-1)

    def propose(parts: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
        return REJECTION.propose(parts, filtered(probs_bnV), window)

    def accept(parts: Parts, proposal: Proposal, target_bnV: Tensor, window: Window, honest: bool) -> Acceptance:
        probs_bnV = filtered(proposal.probs_bnV) if honest else proposal.probs_bnV
        return accept_rejection(parts, Proposal(proposal.tokens_bn, probs_bnV), filtered(target_bnV), window)

    parts, expected = replace(PARTS, filter_logits=lambda logits, *_: logits), joint_law(small(), request)
    for honest in (True, False):
        policy = replace(REJECTION, propose=propose, accept=partial(accept, honest=honest))
        apart = law_distance(law_of(small(), DecoderOptions(1, policy=policy), request, parts=parts), expected)
        assert apart < EXACT if honest else apart > SEEN


def test_one_number_that_decides_on_every_token_is_no_crash():
    def one_for_all(parts: Parts) -> Parts:
        return replace(parts, keep_drafted=lambda u_Bn, *laws: parts.keep_drafted(u_Bn[:, :1], *laws))

    with pytest.raises(Broken, match="1 number decides on 5 tokens") as found:
        law_of(small(), DecoderOptions(2, policy=REJECTION), prepare=one_for_all)
    assert found.value.part == "noise"


@pytest.mark.parametrize("streams", [{CORRECT: DRAFT}, {ACCEPT: DRAFT}, {CORRECT: ACCEPT}])
def test_the_ledger_refuses_a_second_reader_of_any_number(streams: dict[str, str]):
    policy = replace(REJECTION, accept=accept_under(streams))
    with pytest.raises(NoiseError, match="contract B"):
        SpeculativeDecoder(small(), DecoderOptions(2, policy=policy)).decode(REQUEST, small().noise(REQUEST))


@pytest.mark.parametrize("looks_kept", [False, True])
def test_a_choice_that_is_taken_for_moot_and_is_not_shows(looks_kept: bool):
    """A redraw that replaces kept tokens too, which the enumeration takes for moot, cannot look right."""
    models = toy_pair(SMALL, 2, seed=0)

    def accept(parts: Parts, proposal: Proposal, target_bnV: Tensor, window: Window) -> Acceptance:
        one_bn = torch.ones(proposal.tokens_bn.shape, dtype=torch.float64)
        if looks_kept:
            parts.keep_drafted(window.uniform(ACCEPT), one_bn, one_bn)
        redrawn_bn = parts.draw(target_bnV, window.exponential(TOKEN))
        never_bn = one_bn < 0
        return Acceptance(redrawn_bn, never_bn, window.whole(never_bn))

    law, _ = output_law(models, REQUEST, DecoderOptions(1, policy=wrong_policy(accept=accept)))
    apart = law_distance(law, joint_law(models, REQUEST))
    assert apart > SEEN if looks_kept else apart < EXACT


def test_the_reference_refuses_what_it_cannot_list():
    with pytest.raises(InputError, match="outcomes"):
        joint_law(toy_pair(ScalePyramid((1, 2, 4)), 2, 0), REQUEST)
    with pytest.raises(InputError, match="exactly one image"):
        joint_law(small(), Request((0, 1)))


# What the enumeration replaces, alone: the two functions that turn a number into a decision.


def test_a_token_is_kept_with_probability_target_over_draft():
    u_1n = (torch.arange(1000) + 0.5)[None] / 1000
    for draft, target, expected in ((0.5, 0.2, 400), (0.2, 0.5, 1000), (0.3, 0.0, 0), (0.7, 0.7, 1000)):
        kept = keep_drafted(u_1n, torch.full_like(u_1n, draft), torch.full_like(u_1n, target))
        assert int(kept.sum()) == expected


def test_the_residual_is_the_normalised_positive_part():
    draft, target = torch.tensor([[[0.5, 0.3, 0.2]]]), torch.tensor([[[0.2, 0.4, 0.4]]])
    assert torch.allclose(residual(draft, target), torch.tensor([0.0, 1 / 3, 2 / 3]), atol=1e-6)
    assert torch.equal(residual(target, target), target)


def test_a_race_has_the_law_that_inversion_has():
    probs_V, n = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0]), 200_000
    E_1nV = torch.empty(1, n, 5).exponential_(1, generator=torch.Generator().manual_seed(1))
    counts_V = torch.bincount(draw(probs_V.expand(1, n, 5), E_1nV)[0], minlength=5).double()
    chi2 = ((counts_V - n * probs_V)[:4].square() / (n * probs_V)[:4]).sum()
    assert counts_V[4] == 0
    assert float(chi2) < 16.27  # 3 degrees of freedom, exceeded by chance once in a thousand seeds; this one is fixed


def test_the_enumeration_runs_any_policy():
    law = law_of(small(), DecoderOptions(2, policy=parse_policy("match:0.5")))
    assert law_distance(law, joint_law(small(), REQUEST)) > SEEN  # lossy, as it says
    assert law_distance(law_of(small(), DecoderOptions(2, policy=COUPLED)), law) > SEEN
