"""A recorded token that is not drawn here: a tie within what is allowed, a defect beyond it, nothing unless judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.golden.cases import RecordedCase
from harness.golden.result import CaseResult
from harness.golden.tokens import Ground, judge_tokens
from harness.judge.verdict import Divergence
from harness.protocol.request import Request
from tests.helpers import Layout, tiny

MODELS = tiny(Layout((1, 2, 3)))
CASE = RecordedCase("a", "sequential", Request((0, 1), 3, cfg=4.0), MODELS)
RUN = CASE.run()
IMAGE, POSITION = 1, 8  # of scale 2
WIDE = 1e3


def judged(margin: float, error: float, whole: bool = True, off: float = 0.0) -> CaseResult:
    """Judge one token that is another; `off`: how far a logit of the run is off at that position."""
    tokens_BL = RUN.tokens_BL.clone()
    tokens_BL[IMAGE, POSITION] = (tokens_BL[IMAGE, POSITION] + 1) % 11
    guided_BLV = RUN.intermediates.guided_BLV.clone()
    guided_BLV[IMAGE, POSITION, 0] += off
    run = replace(RUN, intermediates=replace(RUN.intermediates, guided_BLV=guided_BLV))
    everywhere_BL = torch.ones(tokens_BL.shape)
    # nothing is allowed anywhere else, so that another position's allowance would tell
    margin_BL, error_BL, judged_BL = 0 * everywhere_BL, 0 * everywhere_BL, everywhere_BL == 1
    margin_BL[IMAGE, POSITION], error_BL[IMAGE, POSITION], judged_BL[IMAGE, POSITION] = margin, error, whole
    result = CaseResult("a", CASE.request)
    judge_tokens(CASE, tokens_BL, run, Ground(CASE.exact(tokens_BL), margin_BL, error_BL, judged_BL), result)
    return result


def only(found: list[Divergence]) -> Divergence:
    assert len(found) == 1
    return found[0]


def test_a_differing_token_is_told_with_its_place_and_its_race():
    found = only(judged(0.0, WIDE).defects)
    assert (found.component, found.image, found.scale, found.position) == ("token", IMAGE, 2, POSITION)
    assert found.actual == (found.expected + 1) % 11
    assert found.margin > 0  # float64 draws what is drawn here
    assert found.label == 1


@pytest.mark.parametrize(("share", "tie"), [(0.51, True), (0.49, False)])
def test_both_logits_of_a_race_may_move_by_what_is_allowed_and_no_more(share: float, tie: bool):
    margin = only(judged(0.0, WIDE).defects).margin
    result = judged(share * margin, WIDE)
    assert (len(result.ties), len(result.defects)) == (tie, not tie)


@pytest.mark.parametrize(("error", "tie"), [(0.4, False), (0.6, True)])
def test_a_run_whose_logits_are_wrong_themselves_has_no_ties(error: float, tie: bool):
    result = judged(WIDE, error, off=0.5)
    assert (len(result.ties), len(result.defects)) == (tie, not tie)


def test_what_is_not_judged_is_neither_tie_nor_defect():
    result = judged(0.0, 0.0, whole=False)
    assert (result.ties, result.defects) == ([], [])
