"""The policies' promises: contract C, equal networks, images that do not touch each other, refusals."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.__main__ import main
from harness.errors import InputError, NonFiniteError
from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.reference.sequential import sample_sequential
from harness.speculative._draft_length import DraftLength
from harness.speculative._policies import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.helpers import Layout, digits, tiny, twins
from tests.unit.speculative.toys import EVERY, FOUR, REQUEST, decoded, toys


def expected_tokens(models: ModelPair, request: Request = REQUEST, greedy: bool = False) -> Tensor:
    return sample_sequential(models.target, models.vae, request, models.noise(request), greedy=greedy).tokens_BL


def rejected(trace: Trace) -> int:
    return sum(turn.drafted - turn.accepted for rounds in trace.rounds for turn in rounds)


@pytest.mark.parametrize("policy", ["match:0", "coupled-match:0", "topk-match:2:0"])
def test_a_rate_of_zero_accepts_everything(policy: str):
    trace = decoded(policy, 4)
    assert rejected(trace) == 0
    assert trace.target_calls == [1] * 4


@pytest.mark.parametrize("policy", ["match:1.01", "coupled-match:2", "topk-match:2:1.5"])
@pytest.mark.parametrize("draft_len", [1, 3, "dynamic"])
def test_a_rate_above_one_accepts_nothing_and_is_sequential(policy: str, draft_len: int | str):
    trace = decoded(policy, draft_len)
    assert not any(turn.accepted for rounds in trace.rounds for turn in rounds)
    assert torch.equal(trace.tokens_BL, expected_tokens(toys()))
    assert trace.target_calls == [4] * 4


@pytest.mark.parametrize("name", ["match", "coupled-match", "topk-match:2"])
def test_target_calls_fall_as_the_rate_falls(name: str):
    request = Request(tuple(k % 2 for k in range(40)), 1)
    totals = [sum(decoded(f"{name}:{rate}", 4, request=request).target_calls) for rate in (1.1, 0.8, 0.5, 0.2, 0)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] == 160
    assert totals[-1] == 40
    assert len(set(totals)) >= 4


def test_two_rounds_of_five_reach_two_target_calls_on_digits():
    models, request = digits(), Request((3,), 0)
    trace = decoded("match:0", 5, models, request)
    assert trace.target_calls == [2]
    assert [turn.finished for turn in trace.rounds[0]] == [5, 5]


def test_partial_acceptance_keeps_what_passes_and_replaces_the_rest():
    own, partly = (decoded(policy, 1) for policy in ("match:1.1", "match:1.1+partial"))
    assert torch.equal(own.tokens_BL, expected_tokens(toys()))
    assert not torch.equal(partly.tokens_BL, own.tokens_BL)
    assert sum(partly.total("accepted_tokens")) > sum(own.total("accepted_tokens"))


@pytest.mark.parametrize("policy", ["coupled", "greedy", "rejection", "coupled-match:1", "kl:1e-6"])
@pytest.mark.parametrize("models", [toys(0.0), twins(tiny(Layout((1, 2, 3, 4))))], ids=["toy", "tiny"])
def test_an_equal_draft_is_accepted_whole(policy: str, models: ModelPair):
    # kl needs a bound above rounding: one pass over four scales and four passes differ by 1e-7 a logit in float32
    trace = decoded(policy, 4, models)
    assert rejected(trace) == 0
    assert trace.target_calls == [1] * 4
    if policy != "rejection":
        assert torch.equal(trace.tokens_BL, expected_tokens(models, greedy=policy == "greedy"))


@pytest.mark.parametrize("name", ["handoff", "collaborative", "code"])
@pytest.mark.parametrize("entry", range(5))
def test_dividing_the_labour_between_equal_networks_is_sequential(name: str, entry: int):
    trace = decoded(f"{name}:{entry}", 2, toys(0.0))
    assert torch.equal(trace.tokens_BL, expected_tokens(toys(0.0)))
    alone = entry if name == "handoff" else 4 - entry
    assert all(rows == FOUR.L for rows in trace.target_rows) is (alone == 0 or (name == "handoff" and entry < 4))


@pytest.mark.parametrize("draft_len", [1, 3, "dynamic", "4/1/2/1"])
@pytest.mark.parametrize("entry", range(5))
def test_target_first_makes_one_target_pass_a_scale_and_the_draft_fills_its_cache_in_one(
    entry: int, draft_len: int | str
):
    request = Request((0, 1, 1, 0), 5, order="batch" if entry % 2 else "image")
    trace, own = decoded(f"code:{entry}", draft_len, request=request), FOUR.begin(entry)
    sequential_BL = expected_tokens(toys(), request)
    assert torch.equal(trace.tokens_BL[:, :own], sequential_BL[:, :own])
    assert (trace.target_calls, trace.target_rows) == ([entry] * 4, [own] * 4)
    assert (trace.draft_calls, trace.draft_rows) == ([4 - entry] * 4, [FOUR.L if entry < 4 else 0] * 4)
    turns = [(t.first, t.drafted, t.accepted, t.bonus, t.bonus_tokens) for t in trace.rounds[0]]
    alone = [(si, 0, 0, True, FOUR.tokens(si)) for si in range(entry)]
    assert turns == alone + [(entry, 4 - entry, 4 - entry, False, 0)] * (entry < 4)
    if entry < 4:
        assert trace.rounds[0][-1].draft_rows == FOUR.L  # scales 0..ENTRY in its first pass, and the others
        assert not torch.equal(trace.tokens_BL, sequential_BL)
    else:
        assert torch.equal(trace.tokens_BL, sequential_BL)
    kept = trace.intermediates
    assert kept is not None
    for name in ("x_RLD", "rows_RLV", "guided_BLV"):  # of the target's passes, and of nothing else
        tensor = getattr(kept, name)
        assert torch.isfinite(tensor[:, :own]).all()
        assert torch.isnan(tensor[:, own:]).all()
    assert torch.isfinite(kept.f_hat_SBCPP).all()


@pytest.mark.parametrize(("entry", "end"), [(entry, end) for entry in range(5) for end in range(entry, 5)])
def test_a_draft_of_the_middle_costs_the_target_one_pass_for_every_other_scale(entry: int, end: int):
    trace, drawn = decoded(f"middle:{entry}:{end}", 3), end > entry
    assert trace.target_calls == [entry + 4 - end] * 4
    assert trace.target_rows == [FOUR.L if end < 4 else FOUR.begin(entry)] * 4  # the first pass after it has its scales
    assert (trace.draft_calls, trace.draft_rows) == ([end - entry] * 4, [FOUR.begin(end) if drawn else 0] * 4)
    turns = [(t.first, t.drafted, t.bonus) for t in trace.rounds[0]]
    alone = [[(si, 0, True) for si in scales] for scales in (range(entry), range(end, 4))]
    assert turns == alone[0] + [(entry, end - entry, False)] * drawn + alone[1]
    if end == 4:
        assert torch.equal(trace.tokens_BL, decoded(f"code:{entry}").tokens_BL)
    if not drawn:
        assert torch.equal(trace.tokens_BL, expected_tokens(toys()))


@pytest.mark.parametrize("entry", range(5))
def test_target_first_gives_the_images_of_collaborative(entry: int):
    """With a draft for the first scales, the policy is `collaborative`: other calls, the same tokens."""
    first, speculated = (decoded(f"{name}:{entry}", 2) for name in ("code", "collaborative"))
    assert torch.equal(first.tokens_BL, speculated.tokens_BL)
    assert torch.equal(first.f_hat_BCPP, speculated.f_hat_BCPP)
    assert all(calls >= other for calls, other in zip(first.target_calls, speculated.target_calls, strict=True))
    assert all(rows <= other for rows, other in zip(first.target_rows, speculated.target_rows, strict=True))


def test_a_pass_of_the_target_alone_is_looked_at_for_numbers_that_are_not_finite():
    models = tiny(Layout((1, 2, 3, 4)))
    weights = {**models.target.weights, "head.bias": models.target.weights["head.bias"] + torch.inf}
    broken = replace(models, target=replace(models.target, weights=weights))  # type: ignore[type-var]
    for keep in (True, False):
        decoder = SpeculativeDecoder(broken, DecoderOptions(2, policy=parse_policy("code:2"), keep_intermediates=keep))
        with pytest.raises(NonFiniteError, match="the pass that began at scale 0"):
            decoder.decode(REQUEST, models.noise(REQUEST))


def test_a_match_may_reject_an_equal_draft():
    """A sampled token often is not the most likely one: this is what `match` measures, not a mistake of the draft."""
    assert rejected(decoded("match:1", 4, toys(0.0))) > 0


@pytest.mark.parametrize(
    ("policy", "sole"),
    [
        ("handoff:4", "draft"),
        ("collaborative:0", "draft"),
        ("handoff:0", "target"),
        ("code:0", "draft"),
        ("code:4", "target"),
        ("middle:0:4", "draft"),
        ("middle:2:2", "target"),
    ],
)
def test_at_its_ends_the_division_leaves_one_network_alone(policy: str, sole: str):
    trace = decoded(policy, 2)
    network = toys().draft if sole == "draft" else toys().target
    alone = replace(toys(), draft=network, target=network)
    assert torch.equal(trace.tokens_BL, expected_tokens(alone))
    assert (sum(trace.target_calls) == 0) is (sole == "draft")


@pytest.mark.parametrize("policy", EVERY)
@pytest.mark.parametrize("draft_len", [3, "dynamic"])
def test_an_image_is_the_same_alone_and_in_any_batch(policy: str, draft_len: int | str):
    whole = decoded(policy, draft_len)
    if policy == "coupled":  # the images of this batch do go apart
        assert len({tuple(turn.finished for turn in rounds) for rounds in whole.rounds}) > 1
    for rows in ([0], [2], [3, 1]):
        part = decoded(policy, draft_len, request=REQUEST.only(rows))
        assert torch.equal(part.tokens_BL, whole.tokens_BL[rows])
        assert part.rounds == [whole.rounds[b] for b in rows]
        assert part.target_rows == [whole.target_rows[b] for b in rows]


@pytest.mark.parametrize("policy", EVERY)
@pytest.mark.parametrize("draft_len", [1, 2, 4, "4/1/2/1", "dynamic", "dynamic:2:3"])
def test_every_scale_is_finished_exactly_once_and_the_counts_add_up(policy: str, draft_len: int | str):
    for bonus in (False, True):
        decoder = SpeculativeDecoder(toys(), DecoderOptions(draft_len, bonus, parse_policy(policy)))
        trace = decoder.decode(REQUEST, toys().noise(REQUEST))
        assert trace.missing_scales(FOUR) == []
        assert sum(n * rounds for n, rounds in trace.scales_per_round().items()) == 4 * FOUR.S
        for b, rounds in enumerate(trace.rounds):
            assert [t.first + k for t in rounds for k in range(t.finished)] == list(FOUR)
            assert all(t.finished >= 1 and (t.drafted >= 1 or policy in ("code:2", "middle:1:3")) for t in rounds)
            assert sum(t.accepted_tokens + t.corrected_tokens + t.bonus_tokens for t in rounds) == FOUR.L
            assert sum(t.target_rows for t in rounds) == trace.target_rows[b]
            assert sum(t.draft_rows for t in rounds) == trace.draft_rows[b]
            assert sum(t.drafted for t in rounds) == trace.draft_calls[b]
            for turn in rounds:
                done = FOUR.begin(turn.first + turn.finished)
                assert turn.target_cache <= done
                assert turn.draft_cache <= done


@pytest.mark.parametrize("draft_len", ["dynamic:1:3", "dynamic:2:4"])
def test_a_dynamic_length_follows_the_images_own_history(draft_len: str):
    low, high = (int(number) for number in draft_len.split(":")[1:])
    request = Request(tuple(k % 2 for k in range(16)), 9)
    seen = set()
    for rounds in decoded("coupled", draft_len, toys(0.3), request).rounds:
        length = low
        for turn in rounds:
            assert turn.drafted == min(length, FOUR.S - turn.first)
            whole = turn.accepted == turn.drafted
            seen.add(whole)
            length = min(length + 1, high) if whole else max(length - 1, low)
    assert seen == {True, False}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sdvar-harness", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


BAD = {
    "policy=guess": (["--policy", "guess"], "must be one of"),
    "policy=match:x": (["--policy", "match:x"], "RATE must be a number >= 0"),
    "policy=match:-1": (["--policy", "match:-1"], "RATE must be a number >= 0"),
    "policy=match:nan": (["--policy", "match:nan"], "RATE must be a number >= 0"),
    "policy=match:0.5:2": (["--policy", "match:0.5:2"], "numbers"),
    "policy=coupled:1": (["--policy", "coupled:1"], "takes 0 numbers"),
    "policy=coupled+partial": (["--policy", "coupled+partial"], "+partial"),
    "policy=coupled-match": (["--policy", "coupled-match"], "takes 1 numbers"),
    "policy=topk-match:0:0.5": (["--policy", "topk-match:0:0.5"], "K must be a whole number >= 1"),
    "policy=topk-match:9999:0.5": (["--policy", "topk-match:9999:0.5"], "V=512"),
    "policy=kl:": (["--policy", "kl:"], "BOUND must be a number >= 0"),
    "policy=kl:inf": (["--policy", "kl:inf"], "BOUND must be a number >= 0"),
    "policy=handoff:11": (["--policy", "handoff:11"], "ENTRY must lie in 0..10"),
    "policy=handoff:99999999": (["--policy", "handoff:99999999"], "ENTRY must lie in 0..10"),
    "policy=collaborative:9999999999": (["--policy", "collaborative:9999999999"], "ENTRY must be a whole number >= 0"),
    "policy=code:11": (["--policy", "code:11"], "ENTRY must lie in 0..10"),
    "policy=code": (["--policy", "code"], "takes 1 numbers: ENTRY must be a whole number >= 0"),
    "policy=code:5:2": (["--policy", "code:5:2"], "takes 1 numbers: ENTRY must be a whole number >= 0"),
    "policy=middle:3": (["--policy", "middle:3"], "takes 2 numbers: ENTRY must be a whole number >= 0, EXIT must be a"),
    "policy=middle:3:11": (["--policy", "middle:3:11"], "ENTRY and EXIT must lie in 0..10; pass --policy middle:10:10"),
    "policy=middle:5:3": (["--policy", "middle:5:3"], "EXIT must be at least ENTRY; pass --policy middle:5:5"),
    "policy=code:5+partial": (["--policy", "code:5+partial"], "+partial changes what a rejected scale becomes"),
    "policy=handoff:-1": (["--policy", "handoff:-1"], "ENTRY must be a whole number >= 0"),
    "policy=collaborative:2.5": (["--policy", "collaborative:2.5"], "ENTRY must be a whole number >= 0"),
    "contract=A": (["--policy", "match:0.5", "--contract", "A"], "claims contract C"),
    "contract=B": (["--policy", "coupled", "--contract", "B"], "claims contract A"),
    "contract=C": (["--policy", "rejection", "--contract", "C"], "claims contract B"),
    "contract=D": (["--policy", "coupled", "--contract", "D"], "must be A, B or C"),
    "draft_len=1/2/3": (["--draft-len", "1/2/3"], "one number a scale (10)"),
    "draft_len=1/1/1/1/1/1/1/1/1/0": (["--draft-len", "1/1/1/1/1/1/1/1/1/0"], "1..10"),
    "draft_len=dynamic:3:2": (["--draft-len", "dynamic:3:2"], "1 <= LOW <= HIGH <= 10"),
    "draft_len=dynamic:0:2": (["--draft-len", "dynamic:0:2"], "1 <= LOW <= HIGH <= 10"),
    "draft_len=dynamic:2": (["--draft-len", "dynamic:2"], "both bounds or none"),
    "draft_len=9999999999": (["--draft-len", "9999999999,1/2"], "must lie in 1..10"),
    "draft_len=soon": (["--draft-len", "soon"], "must read"),
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_policy_or_length_is_one_line(
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options, rule = BAD[said]
    assert run(monkeypatch, "verify", "--seeds", "0", "--labels", "0", "--quiet", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith(f"error: {said}: ")
    assert rule in captured.err
    assert "; " in captured.err


@pytest.mark.parametrize("S", [1, 4])
def test_a_length_never_leaves_the_pyramid(S: int):
    for text in ("1", "dynamic", "/".join(["1"] * S)):
        rule = DraftLength.parse(text)
        rule.check(S)
        for first in range(S):
            for current in range(1, S + 1):
                assert 1 <= rule.count(first, current, S) <= S - first


def test_policies_say_why_they_claim_a_contract():
    for text in EVERY:
        assert parse_policy(text).reason
    with pytest.raises(InputError, match="drafted tokens that the target would not have drawn"):
        parse_policy("match:0.5", "A")
