"""A count that is too low to be true is a defect, and one that may be true is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.judge._decode import _wrong_counts
from harness.protocol._decoder import Contract
from harness.protocol._request import Request
from harness.protocol._trace import Round, Trace
from harness.protocol.pyramid import ScalePyramid

PYRAMID = ScalePyramid((1, 2, 3))  # 1 + 4 + 9 = 14 positions
BOTH = Round(0, 2, 2, False, False, 5, 0, 0, target_rows=5)
LAST = Round(2, 1, 0, True, False, 8, 1, 0, target_rows=9)
ALONE = replace(LAST, target_rows=0)  # the draft decided


def found(rounds: list[list[Round]], contract: Contract, calls: Any = (), rows: Any = ()) -> list[tuple[int, str]]:
    trace = Trace(torch.zeros(1), torch.zeros(1), torch.zeros(1), rounds, list(calls), list(rows))
    request = Request(tuple(range(max(1, len(rounds)))), seed=7)
    wrong = _wrong_counts(PYRAMID, request, trace, contract)
    assert {(d.component, d.seed) for d in wrong} <= {("counts", 7)}
    return [(d.image, d.detail) for d in wrong]


@pytest.mark.parametrize("contract", list(Contract))
def test_counts_that_may_be_true_are_no_defects(contract: Contract):
    assert found([[BOTH, LAST]], contract, [2], [14]) == []
    assert found([[BOTH, LAST]], contract, [9], [99]) == []  # wasteful, but no lie
    assert found([[BOTH, LAST]], contract) == []  # no counts: nothing to check
    assert found([], contract) == []


@pytest.mark.parametrize("contract", list(Contract))
def test_a_pass_computes_every_position_that_it_makes_final(contract: Contract):
    said = "the round at scale 0 counts 4 target rows for 5 final positions"
    assert found([[replace(BOTH, target_rows=4), LAST]], contract) == [(0, said)]
    said = "the round at scale 2 counts 8 target rows for 9 final positions"
    assert found([[BOTH, LAST], [BOTH, replace(LAST, target_rows=8)]], contract) == [(1, said)]


@pytest.mark.parametrize("contract", list(Contract))
def test_a_round_counts_every_token_that_it_makes_final_once(contract: Contract):
    said = "the round at scale 2 counts 10 tokens in 9 that it makes final"
    assert found([[BOTH, replace(LAST, accepted_tokens=9)]], contract) == [(0, said)]
    said = "the round at scale 0 counts 4 tokens in 5 that it makes final"
    assert found([[replace(BOTH, accepted_tokens=4), LAST]], contract) == [(0, said)]


@pytest.mark.parametrize("contract", [Contract.TOKENS, Contract.LAW])
def test_a_target_that_decides_everything_computes_everything(contract: Contract):
    assert found([[BOTH, ALONE]], contract) == [
        (0, "the round at scale 2 counts no target rows, and the target decides every scale")
    ]
    assert found([], contract, [0], [14]) == [(0, "target_calls is 0, and cannot be below 1")]
    assert found([], contract, [1], [13]) == [(0, "target_rows is 13, and cannot be below 14")]
    assert found([], contract, [1], [14]) == []
    assert found([[BOTH, LAST]], contract, [1], [14]) == [(0, "target_calls is 1, and cannot be below 2")]
    assert found([[BOTH, LAST]], contract, [2], [13]) == [(0, "target_rows is 13, and cannot be below 14")]


def test_rows_cannot_be_below_those_of_the_rounds():
    wide = replace(LAST, target_rows=20)
    assert found([[BOTH, wide]], Contract.TOKENS, [2], [24]) == [(0, "target_rows is 24, and cannot be below 25")]
    assert found([[BOTH, wide]], Contract.TOKENS, [2], [25]) == []


def test_a_draft_may_decide_alone_where_quality_is_all_that_is_claimed():
    assert found([[BOTH, ALONE]], Contract.QUALITY, [1], [5]) == []
    assert found([[BOTH, ALONE]], Contract.QUALITY, [0], [5]) == [(0, "target_calls is 0, and cannot be below 1")]
    assert found([[BOTH, ALONE]], Contract.QUALITY, [1], [4]) == [(0, "target_rows is 4, and cannot be below 5")]
    assert found([], Contract.QUALITY, [0], [0]) == []  # nothing is known of it
    alone = replace(BOTH, target_rows=0)
    assert found([[alone, ALONE]], Contract.QUALITY, [0], [0]) == []


def test_the_first_count_of_every_image_is_named():
    assert [image for image, _ in found([[BOTH, LAST]] * 3, Contract.LAW, [2, 1, 2], [14, 14, 1])] == [1, 2]
