"""The alarms of a run: which ties they reject, of which images, and with which words."""

from __future__ import annotations

import math

import pytest
import torch

from harness.judge.many import ALARM
from harness.judge.verdict import Divergence, Judgement
from harness.judge.weights import MANY, weigh_decode, weigh_run
from harness.protocol.request import Request
from harness.rounding.budget import Allowance, Budget
from tests.unit.judge.test_tokens import evidence

S, LOOKS = 3, 2
LEVEL = math.log(LOOKS * (S + 1) / ALARM)  # each scale and the run, in every setting
ONE = Request((0,), cfg=1.0)
OTHER = Request((1,), cfg=4.0)
WHOLE = "the {} ties of the run together are beyond rounding"


def tie(si: int, margin: float, position: int = 0) -> Divergence:
    return Divergence("tie", "fine", 3, 0, scale=si, position=position, margin=margin)


def weighed(*ties: Divergence, weighs: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Judgement:
    """Return a judgement whose ties weigh so much by scale, whatever θ is: the mean over θ is that number."""
    return Judgement(1, ties=list(ties), surprise=[[weight] * 3 for weight in weighs])


def usual(request: Request) -> list[Allowance]:
    return [Allowance(9.0, 9.0, 0.0, "by hand")] * S


def run(*judgements: Judgement, looks: int = LOOKS) -> None:
    weigh_run([(ONE, judgement) for judgement in judgements], usual, looks)


@pytest.mark.parametrize(("share", "alarm"), [(0.999, False), (1.001, True)])
def test_one_scale_of_all_images_together_is_too_much(share: float, alarm: bool):
    low = share * LEVEL / 2
    stay, two, no_tie = [tie(1, 0.0), tie(1, -1.0), tie(2, 0.5), tie(0, 0.5)], [tie(1, 0.5), tie(1, 2.0)], weighed()
    first = weighed(*stay, two[0], weighs=(-99.0, low, -99.0))
    second = weighed(two[1], weighs=(-99.0, low, -99.0))
    run(first, no_tie, second)
    assert (first.ties, second.ties) == (stay if alarm else [*stay, two[0]], [] if alarm else [two[1]])
    for judgement, margin in ((first, 0.5), (second, 2.0)):
        assert [(d.component, d.detail, d.scale, d.margin) for d in judgement.defects] == (
            [("unknown", MANY, 1, margin)] if alarm else []
        )
        assert judgement.wrong_tokens == alarm
    assert (no_tie.defects, no_tie.wrong_tokens) == ([], 0)


@pytest.mark.parametrize(("share", "alarm"), [(0.999, False), (1.001, True)])
def test_a_run_may_be_too_much_where_no_scale_is_and_its_last_tie_says_so(share: float, alarm: bool):
    low = share * LEVEL / 9
    ties = [[tie(si, 0.1, 3 * b + si) for si in range(S)] for b in range(3)]
    made = [weighed(*of, weighs=(low, low, low)) for of in ties]
    made.append(weighed())
    run(*made)
    assert [judgement.ties for judgement in made] == [*ties[:2], ties[2][:2] if alarm else ties[2], []]
    assert [(j.wrong_tokens, len(j.defects)) for j in made] == [(0, 0), (0, 0), (alarm, alarm), (0, 0)]
    if alarm:
        (defect,) = made[2].defects
        assert (defect.component, defect.detail, defect.position) == ("unknown", WHOLE.format(9), 8)


def test_a_run_without_a_tie_that_is_left_has_nothing_to_reject():
    only = weighed(tie(1, 0.5), weighs=(9.0, 99.0, 9.0))
    run(only)  # the scale's alarm takes it, the run's finds none
    assert ([d.detail for d in only.defects], only.ties, only.wrong_tokens) == ([MANY], [], 1)
    no_tie = weighed(weighs=(99.0, 99.0, 99.0))
    run(no_tie)
    assert (no_tie.defects, no_tie.wrong_tokens) == ([], 0)


def test_what_weighs_nothing_is_no_part_of_the_run():
    """Another contract has no ties to weigh, and no surprise."""
    unclaimed = Judgement(1, ties=[tie(1, 0.5)])
    claimed = weighed(tie(1, 0.5), weighs=(0.0, 1.001 * LEVEL, 0.0))
    run(unclaimed, claimed)
    assert (unclaimed.defects, len(claimed.defects)) == ([], 1)


def test_unusual_ties_are_those_of_one_guidance_by_its_own_rounding():
    """Ten wide ties of cfg 1, five an image, and ten as wide of cfg 4, which rounds by so much."""

    def allowed(request: Request) -> list[Allowance]:
        return [Allowance(9.0, 0.1 if request.cfg == ONE.cfg else 0.9, 0.0, "by hand")] * S

    narrow = tie(1, 0.01)
    wide = [weighed(*[tie(si % S, 0.2, si) for si in range(5)]) for _ in range(2)]
    wide[0].ties.append(narrow)
    fine = [weighed(*[tie(si % S, 0.2, si) for si in range(5)]) for _ in range(2)]
    weigh_run([(ONE, wide[0]), (OTHER, fine[0]), (OTHER, fine[1]), (ONE, wide[1])], allowed, LOOKS)
    assert [[d.position for d in judgement.defects] for judgement in wide] == [[0, 1, 2, 3, 4]] * 2
    assert {d.detail for judgement in wide for d in judgement.defects} == {MANY}
    assert [judgement.ties for judgement in wide] == [[narrow], []]
    assert [(len(judgement.ties), judgement.defects) for judgement in fine] == [(5, []), (5, [])]


def test_an_image_without_ties_weighs_what_its_draws_cost():
    judgement = Judgement(2)
    costs_SB3 = torch.arange(18, dtype=torch.float64).reshape(S, 2, 3)
    weigh_decode(evidence(), judgement, costs_SB3, [])
    assert judgement.surprise == (-costs_SB3.sum(1)).tolist()
    assert (judgement.ties, judgement.defects) == ([], [])


def test_unusual_ties_of_a_decode_are_those_of_one_image():
    """Twenty wide ties: ten of one image are too many, five of each of two others are not."""
    budget = Budget(90.0, 1.0, 0.0, "by hand")
    far = 2 * evidence(budget).allowance(0).logits_rms
    ties, row_of = [tie(0, far, position) for position in range(20)], [0] * 5 + [2] * 10 + [1] * 5
    judgement = Judgement(3, ties=list(ties))
    weigh_decode(evidence(budget), judgement, torch.full((S, 3, 3), 1e3, dtype=torch.float64), row_of)
    assert judgement.ties == ties[:5] + ties[15:]
    assert [d.position for d in judgement.defects] == list(range(5, 15))
    assert MANY == "one of many ties whose margins together are beyond rounding"
