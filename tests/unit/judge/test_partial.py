"""A decode that ended half-way: what was final is judged, what was never reached is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.judge._decode import _is_whole, _progress, final_scales, judge, judge_partial_trace
from harness.judge._evidence import Evidence
from harness.judge._verdict import Divergence, Judgement, Verdict
from harness.protocol._decoder import Contract
from harness.protocol._trace import Trace
from harness.reference.sequential import sample_sequential
from tests.unit.judge.test_tokens import MODELS, evidence, hidden

PYRAMID, NAN = MODELS.pyramid, float("nan")


def cut(found: Evidence, *done: int) -> Evidence:
    """Let every image end behind so many scales, what follows never written."""
    trace, kept = found.actual, found.actual.intermediates
    tokens_BL, writes_BS = trace.tokens_BL.clone(), trace.scale_writes_BS.clone()
    x, rows, guided, f_hat = (getattr(kept, n).clone() for n in ("x_RLD", "rows_RLV", "guided_BLV", "f_hat_SBCPP"))
    for image, count in enumerate(done):
        span = slice(PYRAMID.begin(count) if count < PYRAMID.S else PYRAMID.L, None)
        tokens_BL[image, span], writes_BS[image, count:] = -1, 0
        x[[image, 2 + image], span], rows[[image, 2 + image], span], guided[image, span] = NAN, NAN, NAN
        f_hat[count:, image] = NAN
    kept = replace(kept, x_RLD=x, rows_RLV=rows, guided_BLV=guided, f_hat_SBCPP=f_hat)
    rounds = [turns[:1] for turns in trace.rounds]
    made = replace(trace, tokens_BL=tokens_BL, scale_writes_BS=writes_BS, intermediates=kept, rounds=rounds)
    return replace(found, actual=made)


def ended() -> Judgement:
    return Judgement(2, defects=[Divergence("crash", "boom", 3)], so_far="last seen: scale 2")


def bent(found: Evidence, si: int, image: int = 0) -> Evidence:
    """Move f_hat behind one scale of one image."""
    kept = found.actual.intermediates
    f_hat = kept.f_hat_SBCPP.clone()
    f_hat[si, image, 0, 0, 0] += 1
    return replace(found, actual=replace(found.actual, intermediates=replace(kept, f_hat_SBCPP=f_hat)))


def test_what_was_right_until_the_end_leaves_the_end_alone():
    made = judge_partial_trace(cut(evidence(), 2, 2), Contract.TOKENS, True, ended())
    assert [each.component for each in made.defects] == ["crash"]
    assert made.so_far == "1 round, scales 0..1 of 3 final; last good tensor: f_hat of scale 1; last seen: scale 2"
    assert (made.verdict, made.wrong_tensors, made.draws) == (Verdict.DEFECT, 0, 0)


def test_the_end_comes_first_whatever_was_wrong_before():
    made = judge_partial_trace(bent(cut(evidence(), 2, 2), 1, 1), Contract.TOKENS, True, ended())
    assert [(each.component, each.image, each.scale) for each in made.defects] == [("crash", -1, -1), ("f_hat", 1, 1)]
    assert made.wrong_tensors == 1
    assert "; last good tensor: f_hat of scale 0; " in made.so_far


def test_where_the_first_scale_is_wrong_no_tensor_was_right():
    made = judge_partial_trace(bent(cut(evidence(), 2, 2), 0), Contract.TOKENS, True, ended())
    assert [each.scale for each in made.defects] == [-1, 0]
    assert made.so_far == "1 round, scales 0..1 of 3 final; no tensor was right; last seen: scale 2"


def test_images_end_apart_and_the_shortest_is_told():
    found = cut(evidence(), 2, 1)
    made = judge_partial_trace(bent(found, 1, 0), Contract.TOKENS, True, replace(ended(), so_far=""))
    assert [(each.image, each.scale) for each in made.defects] == [(-1, -1), (0, 1)]
    assert made.so_far == "1 round, scales 0..0 of 3 final; last good tensor: f_hat of scale 0"


def test_an_image_that_was_not_begun_makes_no_tensor_wrong():
    made = judge_partial_trace(bent(cut(evidence(), 2, 0), 1), Contract.TOKENS, True, ended())
    assert [(each.image, each.scale) for each in made.defects] == [(-1, -1), (0, 1)]
    assert made.so_far == "1 round, scales 0..1 of 3 final; last good tensor: f_hat of scale 0; last seen: scale 2"


def test_nothing_that_was_final_is_nothing_to_judge():
    made = judge_partial_trace(cut(evidence(), 0, 0), Contract.TOKENS, True, ended())
    assert [each.component for each in made.defects] == ["crash"]
    assert made.so_far == "1 round, no scale of 3 final; last seen: scale 2"


@pytest.mark.parametrize("contract", list(Contract))
def test_a_whole_trace_is_judged_as_one_and_the_end_comes_first(contract: Contract):
    found = bent(evidence(), 1)
    made, due = judge_partial_trace(found, contract, True, ended()), judge(found, contract)
    # by text: NaN equals nothing, itself neither where a field is compared by itself (Python 3.13)
    assert [str(each) for each in made.defects] == [str(each) for each in (*ended().defects, *due.defects)]
    assert (made.so_far, made.draws, made.identical) == ("last seen: scale 2", due.draws, due.identical)


@pytest.mark.parametrize("drafts", [True, False])
def test_a_whole_trace_must_draft_where_its_decoder_does(drafts: bool):
    found = evidence()
    made = judge_partial_trace(
        replace(found, actual=replace(found.actual, rounds=[])), Contract.TOKENS, drafts, ended()
    )
    assert (made.inconclusive != []) is drafts


@pytest.mark.parametrize("garbage", [-1, 11, 10**6])
def test_the_first_and_the_last_code_are_tokens_and_what_was_never_drawn_is_none(garbage: int):
    """The reference runs along final tokens as they are, whatever lies behind them."""
    found, V = evidence(), MODELS.target.config.V
    tokens_BL = found.actual.tokens_BL.clone()
    tokens_BL[:, :5] = torch.tensor([[0, V - 1, 0, V - 1, 0], [V - 1, 0, V - 1, 0, V - 1]])
    noise = MODELS.noise(found.request)
    forced = sample_sequential(MODELS.target, MODELS.vae, found.request, noise, forced_BL=tokens_BL)
    actual = replace(found.actual, tokens_BL=tokens_BL, intermediates=forced.intermediates)
    made = cut(replace(found, actual=actual), 2, 2)
    made.actual.tokens_BL[:, 5:] = garbage
    made = judge_partial_trace(made, Contract.TOKENS, True, ended())
    assert [each.component for each in made.defects] == ["crash"]


def test_a_sequential_decoder_came_no_round_far():
    assert _progress(replace(evidence().actual, rounds=[]), PYRAMID) == "0 rounds, scales 0..2 of 3 final"


def test_without_intermediates_how_far_it_came_is_all_there_is():
    made = judge_partial_trace(hidden(cut(evidence(), 2, 2)), Contract.TOKENS, True, ended())
    assert [each.component for each in made.defects] == ["crash"]
    assert made.so_far.startswith("1 round, scales 0..1 of 3 final; last good tensor")


def test_a_scale_that_the_draft_decided_alone_has_no_target_tensors_under_contract_c():
    found = cut(evidence(), 2, 2)
    kept = found.actual.intermediates
    rows = kept.rows_RLV.clone()
    rows[:, PYRAMID.span(1)] = NAN
    turn = replace(found.actual.rounds[0][0], first=1, drafted=1, accepted=1, target_rows=0, bonus=False,
                   accepted_tokens=4, corrected_tokens=0, bonus_tokens=0)  # fmt: skip
    alone = replace(found.actual, rounds=[[turn]] * 2, intermediates=replace(kept, rows_RLV=rows))
    right = judge_partial_trace(replace(found, actual=alone), Contract.QUALITY, True, ended())
    assert [each.component for each in right.defects] == ["crash"]
    wrong = judge_partial_trace(replace(found, actual=alone), Contract.TOKENS, True, ended())
    assert [each.component for each in wrong.defects[:2]] == ["crash", "trace"]


def trace(writes: list[list[int]], tokens: list[list[int]]) -> Trace:
    return replace(
        evidence().actual, scale_writes_BS=torch.tensor(writes), tokens_BL=torch.tensor(tokens), rounds=[[], []]
    )


FULL = [0] * 14


def test_finished_counts_scales_from_the_first_on():
    gap = [*[0] * 4, -1, *[0] * 9]
    made = trace([[1, 1, 1], [1, 0, 1]], [FULL, FULL])
    assert [final_scales(made, PYRAMID, image) for image in (0, 1)] == [3, 1]
    made = trace([[1, 1, 1], [0, 1, 1]], [gap, FULL])
    assert [final_scales(made, PYRAMID, image) for image in (0, 1)] == [1, 0]
    assert _progress(made, PYRAMID) == "0 rounds, scales 0..0 of 3 final"  # the other one was not begun
    assert _progress(trace([[0, 1, 1]] * 2, [FULL, FULL]), PYRAMID) == "0 rounds, no scale of 3 final"
    assert _progress(trace([[1, 1, 0]] * 2, [FULL] * 2), PYRAMID) == "0 rounds, scales 0..1 of 3 final"


def test_whole_means_every_scale_once_with_tokens_that_there_are():
    V = MODELS.target.config.V
    assert _is_whole(trace([[1, 1, 1]] * 2, [FULL, [V - 1] * 14]), PYRAMID, V)
    assert not _is_whole(trace([[1, 1, 1]] * 2, [FULL, [*FULL[:-1], V]]), PYRAMID, V)
    assert not _is_whole(trace([[1, 1, 1]] * 2, [FULL, [*FULL[:-1], -1]]), PYRAMID, V)
    assert not _is_whole(trace([[1, 1, 1], [1, 0, 1]], [FULL, FULL]), PYRAMID, V)
