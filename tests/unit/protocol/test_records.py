"""Pyramid, request, contract, settings and trace: what they compute, and what they refuse in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.errors import InputError
from harness.protocol._decoder import Contract, Settings
from harness.protocol._request import MOST_CFG, Request
from harness.protocol._trace import Round, Trace
from harness.protocol.pyramid import KNOWN_PYRAMIDS, PATCH_NUMS_256, PATCH_NUMS_512, ScalePyramid

PYRAMID = ScalePyramid((1, 2, 4))


def test_the_published_pyramids():
    small, large = KNOWN_PYRAMIDS
    assert (small.patch_nums, large.patch_nums) == (PATCH_NUMS_256, PATCH_NUMS_512)
    assert PATCH_NUMS_256 == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    assert PATCH_NUMS_512 == (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    assert (small.S, small.L, small.P) == (10, 680, 16)
    assert (large.S, large.L, large.P) == (10, 2240, 32)


def test_spans_partition_the_positions():
    assert [PYRAMID.tokens(si) for si in PYRAMID] == [1, 4, 16]
    assert [PYRAMID.begin(si) for si in range(4)] == [0, 1, 5, 21]
    assert [PYRAMID.end(si) for si in PYRAMID] == [1, 5, 21]
    assert [PYRAMID.span(si) for si in PYRAMID] == [slice(0, 1), slice(1, 5), slice(5, 21)]
    assert PYRAMID.levels() == [0] + [1] * 4 + [2] * 16
    assert [PYRAMID.level_of(position) for position in range(21)] == PYRAMID.levels()
    assert list(PYRAMID) == [0, 1, 2]
    assert (PYRAMID.S, PYRAMID.L, PYRAMID.P) == (3, 21, 4)


def test_the_ramp_goes_from_0_to_1():
    assert [PYRAMID.ramp(si) for si in PYRAMID] == [0.0, 0.5, 1.0]
    assert ScalePyramid((1,)).ramp(0) == 0.0
    assert ScalePyramid((1, 3)).ramp(1) == 1.0


@pytest.mark.parametrize("sides", [(), (2, 3), (1, 1), (1, 3, 2), (0, 1), (1, 2, 2)])
def test_sides_start_at_1_and_increase(sides: tuple[int, ...]):
    with pytest.raises(InputError) as caught:
        ScalePyramid(sides)
    assert str(caught.value) == (
        f"patch_nums={sides}: must start at 1 and increase strictly; for 256 px use {PATCH_NUMS_256}"
    )


def test_sides_become_whole_numbers():
    sides: Any = [1.0, torch.tensor(2)]
    assert ScalePyramid(sides).patch_nums == (1, 2)


FINITE = f"±{MOST_CFG:g}: beyond it logits overflow; pass --cfg 1.5"
BAD: list[tuple[dict[str, Any], str]] = [
    ({"labels": ()}, "labels=(): must name at least one image; pass --labels 0 or --labels all"),
    ({"labels": None, "order": "batch"}, "labels=None: must name at least one image; pass --labels 0 or --labels all"),
    ({"images": (1,)}, "images=(1,): must hold one number per image (2); drop it"),
    ({"images": (1, 2, 3)}, "images=(1, 2, 3): must hold one number per image (2); drop it"),
    (
        {"labels": None, "count": 2},
        'labels=None: drawn labels exist in the published order only; use order="batch"',
    ),
    ({"order": "other"}, "order=other: must be image or batch; pass --noise image or --noise batch"),
    ({"seed": -1}, "seed=-1: must lie in 0..2^63-1; pass a non-negative seed"),
    ({"seed": 2**63}, f"seed={2**63}: must lie in 0..2^63-1; pass a non-negative seed"),
    ({"cfg": float("nan")}, "cfg=nan: must be finite; pass --cfg 1.5"),
    ({"cfg": -float("inf")}, "cfg=-inf: must be finite; pass --cfg 1.5"),
    ({"cfg": 2 * MOST_CFG}, f"cfg={2 * MOST_CFG}: must lie in {FINITE}"),
    ({"cfg": -2 * MOST_CFG}, f"cfg={-2 * MOST_CFG}: must lie in {FINITE}"),
    ({"top_k": -1}, "top_k=-1: must lie in 0..V; pass --top-k 0 to switch the filter off"),
    ({"top_p": -0.1}, "top_p=-0.1: is a share, and must lie in [0, 1]; pass --top-p 0.9, or 0 for no filter"),
    ({"top_p": 1.1}, "top_p=1.1: is a share, and must lie in [0, 1]; pass --top-p 0.9, or 0 for no filter"),
    ({"top_p": float("nan")}, "top_p=nan: is a share, and must lie in [0, 1]; pass --top-p 0.9, or 0 for no filter"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), BAD)
def test_a_bad_request_is_refused_in_one_line(words: dict[str, Any], said: str):
    with pytest.raises(InputError) as caught:
        Request(**{"labels": (0, 1), **words})
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "words",
    [
        {"seed": 0}, {"seed": 2**63 - 1}, {"cfg": MOST_CFG}, {"cfg": -MOST_CFG}, {"cfg": 0.0}, {"top_k": 0},
        {"top_p": 0.0}, {"top_p": 1.0}, {"images": (7, 7)}, {"order": "batch"},
    ],
)  # fmt: skip
def test_a_request_may_lie_at_the_edges(words: dict[str, Any]):
    request = Request((0, 1), **words)
    assert (request.B, request.count) == (2, 2)


def test_a_request_counts_its_images_and_addresses_them():
    assert Request((5, 6, 7)).image_ids == (0, 1, 2)
    assert Request((5, 6), images=(9, 3)).image_ids == (9, 3)
    assert Request(None, order="batch", count=4).B == 4
    labels: Any = [torch.tensor(3), 2.0]
    assert Request(labels).labels == (3, 2)
    assert (Request((0,)).cfg, Request((0,)).order, Request((0,)).seed) == (1.5, "image", 0)


def test_labels_and_filters_are_those_of_the_networks():
    Request((0, 3), top_k=11).check_against(3, 11)  # 3 is unconditional
    with pytest.raises(InputError) as caught:
        Request((0, 4)).check_against(3, 11)
    assert str(caught.value) == "labels=4: must lie in 0..3 (3 is unconditional); pass --labels all"
    with pytest.raises(InputError) as caught:
        Request((-1,)).check_against(3, 11)
    assert str(caught.value).startswith("labels=-1: ")
    with pytest.raises(InputError) as caught:
        Request((0,), top_k=12).check_against(3, 11)
    assert str(caught.value) == "top_k=12: must lie in 0..V=11; pass --top-k 11 or less, 0 for off"
    Request(None, order="batch", count=1).check_against(3, 11)


def test_an_image_alone_keeps_its_address():
    one = Request((5, 6, 7), seed=3, cfg=2.0).only([2, 0])
    assert (one.labels, one.image_ids, one.seed, one.cfg) == ((7, 5), (2, 0), 3, 2.0)
    assert one.only([1]).image_ids == (0,)
    for request in (Request((0, 1), order="batch"), Request(None, order="batch", count=2)):
        with pytest.raises(InputError) as caught:
            request.only([0])
        assert str(caught.value) == "order=batch: an image stands alone in image order only; pass --noise image"


def test_the_contracts_in_order():
    assert [c.letter for c in Contract] == ["A", "B", "C"]
    assert [c.value for c in Contract] == ["token-identical", "distribution-identical", "quality-preserving"]
    assert [[a.entails(b) for b in Contract] for a in Contract] == [
        [True] * 3,
        [False, True, True],
        [False, False, True],
    ]
    assert [c.claim for c in Contract] == [
        "same seed, same tokens as sequential target decoding",
        "the law of sequential target decoding",
        "lossy by a stated rule, at a measured distance",
    ]
    for contract in Contract:
        assert Contract.of(contract.letter) is Contract.of(contract.value) is contract
    for text in ("a", "D", "", "identical", "AB"):
        with pytest.raises(InputError) as caught:
            Contract.of(text)
        assert str(caught.value) == f"contract={text}: must be A, B or C; drop it to take the decoder's own"


def test_settings_say_what_they_are():
    assert str(Settings()) == "draft_len=5"
    assert str(Settings("3,2", True, "match:0.5")) == "match:0.5 draft_len=3,2 bonus"
    assert [Settings(policy=p).greedy for p in ("greedy", "coupled", "rejection")] == [True, False, False]


FIRST = Round(0, 2, 1, True, False, 3, 2, 0, target_rows=5, draft_rows=5)
SECOND = Round(2, 1, 1, False, True, 16, 0, 4, target_rows=20, draft_rows=16)


def test_a_round_finishes_what_it_accepts_corrects_and_adds():
    assert (FIRST.finished, SECOND.finished) == (2, 2)
    assert replace(FIRST, accepted=0).finished == 1
    assert replace(SECOND, bonus=False).finished == 1


def trace(writes: list[list[int]]) -> Trace:
    return Trace(
        torch.zeros(2, 21, dtype=torch.int64), torch.zeros(1), torch.tensor(writes), [[FIRST, SECOND], [SECOND]]
    )


def test_counts_of_rounds_add_up_by_image():
    made = trace([[1, 1, 1]] * 2)
    assert made.total("accepted_tokens") == [19, 16]
    assert made.total("corrected_tokens") == [2, 0]
    assert made.total("corrected") == [1, 0]
    assert made.scales_per_round() == {2: 3}
    made.rounds[1].append(replace(SECOND, bonus=False))
    assert list(made.scales_per_round().items()) == [(1, 1), (2, 3)]


def test_scales_that_were_not_made_final_once_are_missing():
    assert trace([[1, 1, 1]] * 2).missing_scales(PYRAMID) == []
    assert trace([[1, 0, 1], [2, 1, 1]]).missing_scales(PYRAMID) == [(0, 1), (1, 0)]
    assert trace([[1, 1, 1]]).missing_scales(PYRAMID) == [(b, si) for b in range(2) for si in range(3)]
    assert len(trace([[1, 1]] * 2).missing_scales(PYRAMID)) == 6


def test_settings_say_what_a_decoder_was_asked_for_and_nothing_else():
    assert str(Settings(2)) == "draft_len=2"
    assert str(Settings("1/2", True, "greedy")) == "greedy draft_len=1/2 bonus"
    assert str(Settings("", False, "")) == "as it is"
    named = (("checkout", "/somewhere"), ("gamma", "3"), ("gamma", "4"))
    assert str(Settings(3, options=named)) == "draft_len=3 gamma=3 gamma=4"  # a rule of its own
    assert str(Settings("", policy="", options=named[:1])) == "as it is"
    assert Settings(options=named).option("gamma") == "4"
    assert Settings(options=named).option("other") == ""
    assert Settings(options=named).option("other", "2") == "2"


def test_a_batch_of_several_seeds_is_one_of_images():
    mixed = Request((0, 1), 5, seeds=(5, 9))
    assert [mixed.where(b) for b in (0, 1)] == [{"seed": 5, "image": 0}, {"seed": 9, "image": 1}]
    with pytest.raises(InputError, match=r"^seeds=\(5, 9\): must hold one seed per image \(3\); drop it$"):
        Request((0, 1, 2), 5, seeds=(5, 9))
    said = r'^seeds=\(5, 9\): a batch in the published order has one seed; use order="image"$'
    with pytest.raises(InputError, match=said):
        Request((0, 1), 5, order="batch", seeds=(5, 9))
