"""The naive oracle of policies, by hand where a hand can follow, and beside the sequential sampler."""

from __future__ import annotations

import math

import pytest
import torch

from harness.laws import Case
from harness.reference._policies import PolicyRule, decode_by_policy, length_after, length_begin, length_wanted
from harness.reference.sequential import sample_sequential

OWN, DRAFTED = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 1, 2])
TARGET = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4], [0.7, 0.3, 0.0]], dtype=torch.float64)
DRAFT = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.2, 0.3, 0.5]], dtype=torch.float64)

# what passes: token 0 is the target's best; of token 1 it is not; token 2 of the last row cannot be drawn at all
BY_HAND = {
    "match:0.25": (True, [True, False, False, False]),
    "match:0.26": (False, [True, False, False, False]),
    "match": (False, [True, False, False, False]),
    "coupled-match:0.5": (True, [True, True, False, False]),
    "coupled-match:0.51": (False, [True, True, False, False]),
    "topk-match:2:0.75": (True, [True, True, True, False]),  # the third token ties with the second most likely one
    "topk-match:3:0.75": (True, [True, True, True, False]),
    "topk-match:1:0.5": (False, [True, False, False, False]),
    "coupled": (False, [True, True, False, False]),
}


@pytest.mark.parametrize("text", BY_HAND)
def test_a_rule_by_hand(text: str):
    stands, passed = BY_HAND[text]
    got, passed_l = PolicyRule.of(text).test(DRAFTED, OWN, TARGET, DRAFT)
    assert (got, passed_l.tolist()) == (stands, passed)


@pytest.mark.parametrize("number", ["1_0", "１", " 1", "nan", "1e400", ""])
def test_numbers_of_a_rule_are_read_strictly(number: str):
    for text in (f"kl:{number}", f"topk-match:2:{number}"):
        with pytest.raises(ValueError, match="is not a finite number"):
            PolicyRule.of(text)
    for rule in (number, f"1/{number}", f"dynamic:1:{number}"):
        with pytest.raises(ValueError, match="is not a whole number"):
            length_begin(rule, 9) if "dynamic" in rule else length_wanted(rule, 0, 0, 9)


def test_kl_is_of_the_target_by_the_draft_in_nats_and_its_mean():
    third = 0.3 * math.log(0.3 / 0.4) + 0.4 * math.log(0.4 / 0.3)
    last = 0.7 * math.log(0.7 / 0.2)
    mean = (third + last) / 4
    for bound, stands in ((mean * 1.001, True), (mean * 0.999, False)):
        got, passed_l = PolicyRule.of(f"kl:{bound}").test(DRAFTED, OWN, TARGET, DRAFT)
        assert got is stands
        assert passed_l.tolist() == [True, True, third <= bound, False]
    ruled_out = DRAFT.clone()
    ruled_out[0] = torch.tensor([1.0, 0.0, 0.0])
    assert not PolicyRule.of("kl:1000").test(DRAFTED, OWN, TARGET, ruled_out)[0]


def test_draft_lengths_by_hand():
    assert [length_wanted("3", first, 0, 5) for first in range(5)] == [3, 3, 3, 2, 1]
    assert [length_wanted("1/2/3/2/1", first, 0, 5) for first in range(5)] == [1, 2, 3, 2, 1]
    current, seen = length_begin("dynamic:2:3", 9), []
    for whole in (True, True, False, False, False, True):
        current = length_after("dynamic:2:3", current, whole, 9)
        seen.append(current)
    assert seen == [3, 3, 2, 2, 2, 3]
    assert length_begin("dynamic", 9) == 1


@pytest.mark.parametrize("draft", ["near", "close", "identical", "single"])
@pytest.mark.parametrize("draft_len", ["1", "3", "dynamic:1:4"])
@pytest.mark.parametrize("policy", ["coupled", "greedy", "coupled-match:2", "handoff:0", "collaborative:4", "code:4"])
def test_what_is_lossless_gives_the_sequential_tokens(policy: str, draft_len: str, draft: str):
    case = Case((1, 2, 3, 4), draft=draft, labels=(0, 3, 1), seed=4, top_p=0.9)
    tokens_BL, rounds = decode_by_policy(case.models, case.request, case.noise(), policy, draft_len, True)
    greedy = policy == "greedy"
    due = sample_sequential(case.models.target, case.models.vae, case.request, case.noise(), greedy=greedy)
    assert torch.equal(tokens_BL, due.tokens_BL)
    for of_image in rounds:
        covered = [turn.first + k for turn in of_image for k in range(turn.finished)]
        assert covered == list(case.pyramid)


@pytest.mark.parametrize("policy", ["handoff:4", "collaborative:0", "code:0", "match:0", "kl:1000000"])
def test_what_keeps_everything_gives_the_drafts_own_image(policy: str):
    case = Case((1, 2, 3, 4), draft="near", labels=(0, 3, 1), seed=4)
    tokens_BL, rounds = decode_by_policy(case.models, case.request, case.noise(), policy, "2", False)
    due = sample_sequential(case.models.draft, case.models.vae, case.request, case.noise())
    assert torch.equal(tokens_BL, due.tokens_BL)
    assert all(turn.accepted == turn.drafted for of_image in rounds for turn in of_image)


def test_a_bonus_scale_does_not_cross_the_border_of_the_labour():
    case = Case((1, 2, 3, 4), draft="identical", labels=(0,))
    _, (alone,) = decode_by_policy(case.models, case.request, case.noise(), "collaborative:2", "2", True)
    assert [(turn.first, turn.drafted, turn.bonus) for turn in alone] == [(0, 2, False), (2, 2, False)]
    _, (handed,) = decode_by_policy(case.models, case.request, case.noise(), "handoff:2", "1", True)
    assert [(turn.first, turn.drafted, turn.bonus) for turn in handed] == [(0, 2, False), (2, 1, True)]
    _, (whole,) = decode_by_policy(case.models, case.request, case.noise(), "coupled", "2", True)
    assert [(turn.first, turn.drafted, turn.bonus) for turn in whole] == [(0, 2, True), (3, 1, False)]


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("draft_len", ["1", "3", "dynamic"])
def test_the_target_decides_the_first_scales_alone_and_the_draft_the_others(draft_len: str, bonus: bool):
    case = Case((1, 2, 3, 4), draft="near", labels=(0, 3), seed=4)
    tokens_BL, rounds = decode_by_policy(case.models, case.request, case.noise(), "code:2", draft_len, bonus)
    for of_image in rounds:
        counted = [(turn.first, turn.drafted, turn.accepted, turn.bonus) for turn in of_image]
        assert counted == [(0, 0, 0, True), (1, 0, 0, True), (2, 2, 2, False)]
        assert [(turn.accepted_tokens, turn.bonus_tokens) for turn in of_image] == [(0, 1), (0, 4), (25, 0)]
    target = sample_sequential(case.models.target, case.models.vae, case.request, case.noise())
    assert torch.equal(tokens_BL[:, :5], target.tokens_BL[:, :5])
    # the draft's own draws behind the target's tokens
    draft = sample_sequential(case.models.draft, case.models.vae, case.request, case.noise(), tokens_BL)
    assert torch.equal(tokens_BL[:, 5:], draft.tokens_BL[:, 5:])
