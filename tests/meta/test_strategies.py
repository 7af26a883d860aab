"""The strategies reach what the laws are about; a law that holds on trivial cases says nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from harness.laws import Case, Subject
from harness.laws._case import CHOICES, SMALL
from harness.laws._strategies import cases
from harness.models._pair import ModelPair
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.pyramid import PATCH_NUMS_256, ScalePyramid
from harness.speculative.sampler import build_decoder
from tests.drawn import acceptance_patterns, networks, pyramids, requests, small_cases

ENOUGH = 0.15
QUIET = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def sample(strategy: st.SearchStrategy, count: int) -> list:
    """Return what a strategy draws, the same at every call."""
    drawn = []

    @settings(max_examples=count, **QUIET)
    @given(strategy)
    def collect(value: object) -> None:
        drawn.append(value)

    collect()
    return drawn


@pytest.fixture(scope="module")
def decodes() -> list[tuple[Case, Trace]]:
    subject = Subject(build_decoder)
    return [(case, subject.decode(case)) for case in sample(small_cases, 200)]


WHAT: dict[str, Callable[[Trace], bool]] = {
    "rejection": lambda trace: any(turn.corrected for rounds in trace.rounds for turn in rounds),
    "bonus": lambda trace: any(turn.bonus for rounds in trace.rounds for turn in rounds),
    "several rounds": lambda trace: any(len(rounds) > 2 for rounds in trace.rounds),
    "full acceptance": lambda trace: any(
        turn.drafted > 1 and turn.accepted == turn.drafted for rounds in trace.rounds for turn in rounds
    ),
    "partial acceptance": lambda trace: any(
        0 < turn.accepted < turn.drafted for rounds in trace.rounds for turn in rounds
    ),
    "first scale rejected": lambda trace: any(not turn.accepted for rounds in trace.rounds for turn in rounds),
}


@pytest.mark.parametrize("word", WHAT)
def test_enough_examples_exercise(word: str, decodes: list[tuple[Case, Trace]]):
    share = sum(WHAT[word](trace) for _, trace in decodes) / len(decodes)
    print(f"{word}: {share:.0%} of {len(decodes)}")
    assert share >= ENOUGH


def test_every_choice_is_drawn(decodes: list[tuple[Case, Trace]]):
    for name, options in CHOICES.items():
        if len(options) <= 20:
            assert {getattr(case, name) for case, _ in decodes} == set(options), name
    assert len({case.patch_nums for case, _ in decodes}) > 20


def test_pyramids_have_one_to_five_scales_with_sides_to_six_and_the_real_one_is_rare():
    assert len(SMALL) == len(set(SMALL)) == 31
    assert {len(sides) for sides in SMALL} == {1, 2, 3, 4, 5}
    assert max(max(sides) for sides in SMALL) == 6
    drawn = Counter(sample(pyramids, 400))
    assert 0 < drawn[PATCH_NUMS_256] < 40
    assert all(ScalePyramid(sides).S for sides in drawn)


def test_a_failure_shrinks_to_the_smallest_pyramid():
    smallest = find(cases(), lambda case: len(case.patch_nums) > 2, settings=settings(**QUIET))
    assert smallest.patch_nums == (1, 2, 3)
    assert smallest == Case((1, 2, 3), V=3, draft_len=1)


def test_networks_tell_every_position_scale_and_label_apart():
    for pair in sample(networks, 20):
        assert isinstance(pair, ModelPair)
        for network in (pair.draft, pair.target):
            for rows in (network.pos_LD, network.lvl_SD, network.weights["class_emb.weight"]):
                far = torch.cdist(rows, rows) + torch.eye(len(rows), dtype=rows.dtype) * 1e9
                assert float(far.min()) > 0.5


def test_requests_fit_the_networks():
    for request in sample(requests, 50):
        assert isinstance(request, Request)
        request.check_against(classes=3, V=3)


def test_acceptance_patterns_reach_nothing_everything_and_change():
    drawn = sample(acceptance_patterns, 100)
    assert sum(0 in pattern for pattern in drawn) >= 15
    assert sum(max(pattern) >= 3 for pattern in drawn) >= 15
    assert sum(len(set(pattern)) > 1 for pattern in drawn) >= 15
