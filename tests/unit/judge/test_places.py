"""Where a wrong tensor is said to be: component, scale, rows, positions and how often, at the edges of each."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from harness.judge._components import first_wrong_of
from harness.judge._decode import _skipped_there
from harness.judge._evidence import Evidence
from harness.judge._inputs import _cdist
from harness.judge._rows import UNKNOWN
from harness.judge._verdict import Divergence
from harness.protocol._trace import Intermediates, Round
from harness.rounding._budget import Budget
from tests.unit.judge.test_tokens import MODELS, evidence

BUDGET = Budget(1e-3, 1.0, 1e-5, "by hand")
PYRAMID, SPAN = MODELS.pyramid, MODELS.pyramid.span(1)
Change = Callable[[Intermediates], object]


def same() -> Evidence:
    """Return two traces that agree, the decoder's without rounds."""
    found = evidence(BUDGET)
    return replace(found, actual=replace(deepcopy(found.expected), rounds=[]))


def said(found: Evidence, image: int, si: int = 1) -> object:
    """Return the component and the clause on why, if anything is wrong."""
    wrong = first_wrong_of(found, image, [si])
    assert wrong is None or wrong.scale == si
    return wrong and (wrong.component, wrong.detail)


def changed(change: Change, image: int, si: int = 1) -> object:
    found = same()
    assert said(found, image, si) is None
    change(found.actual.intermediates)
    return said(found, image, si)


def test_an_input_may_move_by_a_share_of_its_own_images_largest_value_in_any_channel():
    for share, right in ((0.95, True), (1.05, False)):
        found = same()
        for trace in (found.actual, found.expected):
            x_RLD = trace.intermediates.x_RLD
            x_RLD.mul_(0.1)
            x_RLD[2, 0, 1] = 3.0  # the other half, another scale, another channel
            x_RLD[[1, 3]] *= 1000
        found.actual.intermediates.x_RLD[0, SPAN.start, 5] += share * 3.0 * 2 * BUDGET.f_hat
        assert (said(found, 0) is None) is right


def test_rows_that_are_swapped_are_a_matter_of_guidance():
    def swap(kept: Intermediates) -> None:
        kept.rows_RLV[[1, 3], SPAN] = kept.rows_RLV[[3, 1], SPAN].clone()

    assert changed(swap, 1) == ("guidance", "the logits of scale 1 have their halves swapped: unconditional half first")
    assert changed(swap, 0) is None


@pytest.mark.parametrize(
    ("row", "other", "half"),
    [
        (0, 1, ""),
        (2, 0, ", of the other half"),
        (3, 1, ", of the other half"),
        (3, 2, ""),
        (1, 2, ", of the other half"),
    ],
)
def test_logits_of_another_row_are_named_by_both_rows(row: int, other: int, half: str):
    def copy(kept: Intermediates, off: float = 0.0) -> None:
        kept.rows_RLV[row, SPAN] = kept.rows_RLV[other, SPAN]
        kept.rows_RLV[row, SPAN.start, 0] += off * BUDGET.rows

    due = ("rows", f"guidance row {row} of scale 1 holds what belongs to row {other}{half}")
    assert changed(copy, row % 2) == due
    assert changed(lambda kept: copy(kept, 1.95), row % 2) == due
    assert changed(lambda kept: copy(kept, 2.05), row % 2) != due


@pytest.mark.parametrize(("row", "other"), [(1, 2), (3, 0)])
def test_inputs_of_another_row_are_named_by_both_rows(row: int, other: int):
    def copy(kept: Intermediates) -> None:
        kept.x_RLD[row, SPAN] = kept.x_RLD[other, SPAN]

    due = f"guidance row {row} of scale 1 holds what belongs to row {other}, of the other half"
    assert changed(copy, 1) == ("rows", due)


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize(
    ("halves", "where"),
    [([0], " in the conditional row alone"), ([1], " in the unconditional row alone"), ([0, 1], "")],
)
def test_an_input_that_is_wrong_in_one_half_alone_says_in_which(image: int, halves: list[int], where: str):
    def move(kept: Intermediates) -> None:
        kept.x_RLD[[image + 2 * half for half in halves]] += 9.0

    assert changed(move, image, 0) == ("condition", f"the input of scale 0 is not that of its label{where}")
    if where:
        assert changed(move, image) == ("rows", f"the input of scale 1 is wrong{where}")
    else:
        assert changed(move, image) == ("query", "the input of scale 1 is made of no map at all")


def test_an_input_that_is_off_by_just_what_is_allowed_is_right():
    found = same()
    for trace in (found.actual, found.expected):
        trace.intermediates.x_RLD.mul_(0.01)
        trace.intermediates.x_RLD[1, SPAN.start, 0] = 0.0
    found.actual.intermediates.x_RLD[1, SPAN.start, 0] = 2 * BUDGET.f_hat
    assert said(found, 1) is None
    found.actual.intermediates.x_RLD[1, SPAN.start, 0] = 2.1 * BUDGET.f_hat  # of 1 where all are less, and no more
    assert said(found, 1) is not None
    found.actual.intermediates.x_RLD[1, SPAN.start, 0] = 2 * BUDGET.f_hat
    found.actual.intermediates.x_RLD[3, SPAN] += 9.0
    assert said(found, 1) == ("rows", "the input of scale 1 is wrong in the unconditional row alone")


OFF, RIGHT, IN_PLACE = [*range(4, 13)], [2] * 9, [*range(5, 14)]
BACKWARDS, FIRST, LAST = IN_PLACE[::-1], [6, 5, *IN_PLACE[2:]], [*IN_PLACE[:7], 13, 12]


@pytest.mark.parametrize(
    ("positions", "levels", "carried"),
    [
        (OFF, [1] * 9, "position terms 4..12, not 5..13, and level 1, not 2"),
        (OFF, [0] * 4 + [1] * 5, "position terms 4..12, not 5..13, and level 0..1, not 2"),
        (OFF, RIGHT, "position terms 4..12, not 5..13 (levels right)"),
        (IN_PLACE, [1] * 9, "level 1, not 2 (positions right)"),
        (BACKWARDS, RIGHT, "position terms 13,12,11,10,…, not 5,6,7,8,… (levels right)"),
        (FIRST, RIGHT, "position terms 6,5,7,8,…, not 5,6,7,8,… (levels right)"),
        (LAST, [1] * 9, "position terms …,13,12, not …,12,13, and level 1, not 2"),
    ],
)
def test_inputs_at_other_positions_say_which_terms_they_carry(positions: list[int], levels: list[int], carried: str):
    network, span = MODELS.target, PYRAMID.span(2)

    def move(kept: Intermediates) -> None:
        own_lD = network.lvl_SD[2] + network.pos_LD[span]
        kept.x_RLD[[0, 2], span] += network.lvl_SD[levels] + network.pos_LD[positions] - own_lD

    assert changed(move, 0, 2) == ("positions", f"inputs of scale 2 carry {carried}")


def test_terms_of_what_is_made_of_something_else_are_said_too():
    network, span = MODELS.target, PYRAMID.span(1)

    def move(kept: Intermediates) -> None:
        kept.x_RLD[[0, 2], span] = network.lvl_SD[1] + network.pos_LD[[1, 3, 2, 4]]

    detail = "nothing but its position term, with position terms 1,3,2,4, not 1,2,3,4 (levels right)"
    assert changed(move, 0) == ("query", f"the input of scale 1 is made of {detail}")


def test_positions_are_looked_for_in_float32_at_least():
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        far_lL = _cdist(torch.zeros(2, 3, dtype=dtype), torch.tensor([[0.5, -2.0, 1.0]], dtype=dtype))
        assert (far_lL.dtype, far_lL.tolist()) == (wide, [[2.0], [2.0]])


ASKED = f"; {UNKNOWN}"  # and no setting is advised in which the mistake might not show
ALONE = "logits of scale 2, alone in its pass, differ: keys or values of earlier scales"
ONE_KEY = "differ while its inputs agree; scale 0, which is right, sees one key"


@pytest.mark.parametrize(
    ("si", "turn", "component", "detail"),
    [
        (2, None, "mask or cache", "logits of scale 2 differ while its inputs agree"),
        (2, (0, 3, 3, 0, 0, 14), "mask or cache", f"logits of scale 2 differ in the pass over scales 0..2{ASKED}"),
        (2, (1, 1, 1, 0, 1, 13), "mask or cache", f"logits of scale 2 differ in the pass over scales 1..2{ASKED}"),
        (2, (1, 2, 1, 1, 0, 13), "mask or cache", f"logits of scale 2 differ in the pass over scales 1..2{ASKED}"),
        (2, (2, 1, 1, 0, 0, 9), "cache", ALONE),
        (2, (2, 0, 0, 0, 1, 9), "cache", ALONE),
        (2, (2, 1, 1, 0, 0, 10), "mask or cache", f"logits of scale 2 differ in the pass over scales 2..2{ASKED}"),
        # of queries and keys nothing is known yet
        (1, None, "mask, cache or network", ONE_KEY),
        (1, (0, 2, 2, 0, 0, 5), "mask, cache or network", ONE_KEY),
        (1, (1, 1, 1, 0, 0, 4), "cache or network", ONE_KEY),
        (1, (1, 1, 1, 0, 0, 5), "mask, cache or network", ONE_KEY),
    ],
)
def test_wrong_logits_name_the_pass_that_made_them(si: int, turn: tuple[int, ...] | None, component: str, detail: str):
    found = same()
    found.actual.intermediates.rows_RLV[[0, 2], PYRAMID.span(si), 3] += 9.0
    if turn is not None:
        first, drafted, accepted, corrected, bonus, rows = turn
        made = Round(first, drafted, accepted, bool(corrected), bool(bonus), 0, 0, 0, rows)
        found.actual.rounds = [[made], []]
    named, clause = said(found, 0, si)
    assert named == component
    assert clause.endswith(detail) if si == 2 else detail in clause


def test_of_what_the_decoder_left_out_no_unknown_mistake_is_told():
    found = replace(same(), may_differ_from=2)
    found.actual.skipped_BSN = torch.ones(2, PYRAMID.S, 2, dtype=torch.long)
    address = dict(zip(("seed", "image"), found.request.addresses[0], strict=True))
    defect = Divergence("mask or cache", f"logits differ{ASKED}", **address, scale=1)
    named = _skipped_there(found, defect)
    assert named.component == "skipped"
    assert named.detail.endswith(", which is before scale 2; logits differ")


@pytest.mark.parametrize(("calls", "component"), [(1, "mask"), (2, "mask or cache"), (None, "mask or cache")])
def test_a_scale_after_a_right_one_of_its_pass_has_a_wrong_mask(calls: int | None, component: str):
    found = same()
    found.actual.intermediates.rows_RLV[[0, 2], PYRAMID.span(2), 3] += 9.0
    found.actual.rounds = [[Round(0, 3, 3, False, False, 0, 0, 0, 14)], []]
    found.actual.target_calls = [] if calls is None else [calls, 1]
    why = "those of scale 1 in the same pass do not: cache and network are right"
    named, detail = said(found, 0, 2)
    assert named == component
    assert (why in detail) == (component == "mask")


@pytest.mark.parametrize("name", ["x_RLD", "rows_RLV"])
def test_a_tensor_that_was_never_shown_is_the_traces_fault_where_the_scale_was_drawn(name: str):
    assert changed(lambda kept: getattr(kept, name)[[0, 2], SPAN].fill_(torch.nan), 0) is None  # a copy
    found = same()
    getattr(found.actual.intermediates, name)[[0, 2], SPAN] = torch.nan
    assert said(found, 0) == ("trace", f"{name} of scale 1 was never written, though guided logits of that scale were")
    getattr(found.actual.intermediates, name)[0, SPAN.start, 0] = 0.0
    assert said(found, 0) == ("scheduling", f"{name} of scale 1 is not finite or was never written")
    getattr(found.actual.intermediates, name)[0, SPAN.start, 0] = torch.nan
    found.actual.intermediates.guided_BLV[0, SPAN] = torch.nan
    assert said(found, 0) == ("scheduling", f"{name} of scale 1 is not finite or was never written")


def test_guided_logits_after_a_log_softmax_are_shown_wrongly_and_not_guided_wrongly():
    def shown(kept: Intermediates) -> None:
        kept.guided_BLV[0, SPAN] = kept.guided_BLV[0, SPAN].log_softmax(-1)

    why = "guided logits of scale 1 are right but for a number a row, as after a log-softmax"
    assert changed(shown, 0) == ("trace", f"{why}: they must be shown as guidance makes them")

    def heated(kept: Intermediates) -> None:
        kept.guided_BLV[0, SPAN] = (kept.guided_BLV[0, SPAN] / 1.01).log_softmax(-1)

    component, detail = changed(heated, 0)
    assert (component, "weight or halves" in detail) == ("guidance", True)


@pytest.mark.parametrize(
    ("turn", "component", "detail"),
    [
        (None, "network", "logits of scale 0, which sees nothing but itself, differ"),
        ((0, 1, 1, False, False, 0, 0, 0, 1), "network", "logits of scale 0, which sees nothing but itself, differ"),
        ((0, 3, 1, True, False, 0, 0, 0, 14), "mask or network",
         "logits of scale 0 differ in the pass over scales 0..2: its rows see later scales, or"),
        ((0, 1, 1, False, True, 0, 0, 0, 5), "mask or network",
         "logits of scale 0 differ in the pass over scales 0..1"),
    ],
)  # fmt: skip
def test_wrong_logits_of_scale_0_may_be_the_masks_where_later_scales_are_in_its_pass(
    turn: tuple[int, ...] | None, component: str, detail: str
):
    found = same()
    found.actual.intermediates.rows_RLV[[0, 2], :1, 3] += 9.0
    found.actual.rounds = [[Round(*turn)], []] if turn is not None else []
    named, clause = said(found, 0, 0)
    assert (named, clause[: len(detail)]) == (component, detail)


def stairs() -> Evidence:
    """Return two traces whose f_hat lies around 10 and moves by some tenths a scale."""
    found, generator = same(), torch.Generator().manual_seed(0)
    f_hat_SBCPP = found.expected.intermediates.f_hat_SBCPP
    f_hat_SBCPP.copy_(10 + 0.1 * torch.randn(f_hat_SBCPP.shape, generator=generator).cumsum(0))
    found.actual.intermediates.f_hat_SBCPP.copy_(f_hat_SBCPP)
    return found


@pytest.mark.parametrize("si", [0, 1, 2])
@pytest.mark.parametrize(("times", "word"), [(2.0, "2"), (0.0, "0"), (-1.0, "-1"), (0.5, "0.5"), (1 / 3, "0.333")])
def test_a_contribution_that_is_added_another_number_of_times_says_how_often(si: int, times: float, word: str):
    found = stairs()
    after = found.expected.intermediates.f_hat_SBCPP[si, 1]
    before = found.expected.intermediates.f_hat_SBCPP[si - 1, 1] if si else torch.zeros_like(after)
    added, made = after - before, found.actual.intermediates.f_hat_SBCPP[si, 1]
    made.copy_(before + times * added)
    due = ("f_hat", f"f_hat after scale {si} differs: the scale's contribution was added {word} times")
    assert said(found, 1, si) == due
    made[0, 0, 0] += 0.5e-3 * added.abs().max()
    assert said(found, 1, si) == due
    made[0, 0, 0] += 1.5e-3 * added.abs().max()
    assert said(found, 1, si) == ("f_hat", f"f_hat after scale {si} differs: codes, their resize or the sum")


def test_an_f_hat_that_was_kept_from_an_earlier_scale_says_of_which():
    found, kept, si = stairs(), 0, 2
    f_hat_SBCPP = found.actual.intermediates.f_hat_SBCPP
    f_hat_SBCPP[si, 1] = f_hat_SBCPP[kept, 1]
    due = f"f_hat after scale {si} is the one after scale {kept}: what later scales add is missing"
    assert said(found, 1, si) == ("f_hat", due)
    f_hat_SBCPP[si, 1, 0, 0, 0] += 1.01 * found.f_hat_error
    assert said(found, 1, si) == ("f_hat", f"f_hat after scale {si} differs: codes, their resize or the sum")
    found = stairs()
    f_hat_SBCPP = found.actual.intermediates.f_hat_SBCPP
    f_hat_SBCPP[0, 1] = f_hat_SBCPP[1, 1]  # of a later scale: nothing is missing
    shown = "f_hat after scale 0 is shown as that after scale 1 is: one tensor, to which later scales are added"
    assert said(found, 1, 0) == ("f_hat", shown)
    f_hat_SBCPP[:2, 1] = f_hat_SBCPP[0, 1] + 3  # as alike as after one tensor, but nothing was added later
    assert said(found, 1, 0) == ("f_hat", "f_hat after scale 0 differs: codes, their resize or the sum")
    f_hat_SBCPP[:2, 1] = 0
    assert said(found, 1, 0) == ("f_hat", "f_hat after scale 0 differs: the scale's contribution was added 0 times")
    f_hat_SBCPP[0, 1] = found.expected.intermediates.f_hat_SBCPP[1, 1]
    assert said(found, 1, 0) == ("f_hat", "f_hat after scale 0 differs: codes, their resize or the sum")


def test_f_hat_may_move_by_two_budgets():
    for share, right in ((1.9, True), (2.1, False)):
        found = same()
        found.actual.intermediates.f_hat_SBCPP[1, 1, 0, 0, 0] += share * BUDGET.f_hat
        assert (said(found, 1, 1) is None) is right
