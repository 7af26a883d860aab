"""Whose mistake it is, asked directly: another row, another label, a draft's token that was kept."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.judge import _rows
from harness.judge import _suspects as suspects
from harness.judge._decode import unverified_scales
from harness.judge._evidence import Evidence
from harness.judge._suspects import is_accepted_draft, other_row
from harness.protocol._request import Request
from harness.protocol._trace import Round
from harness.reference._var import guidance_labels, scale_input
from harness.reference.sequential import GrowingCache
from harness.rounding._budget import Budget
from tests.unit.judge.test_tokens import MODELS, REQUEST, evidence

BUDGET = Budget(1e-3, 1.0, 1e-5, "by hand")
NETWORK, PYRAMID = MODELS.target, MODELS.pyramid
CLASSES = NETWORK.config.classes


def rows(*values: float) -> Tensor:
    """Return one number a guidance row, as (R, 1, 1)."""
    return torch.tensor(values)[:, None, None]


@pytest.mark.parametrize(
    ("held", "due", "own", "found"),
    [
        (5.0, (0.0, 5.0, 9.0, 9.0), 0, 1),  # of the same half, where there is no other
        (5.0, (0.0, 9.0, 9.0, 5.0), 0, 3),
        (5.0, (0.0, 5.0, 9.0, 5.0), 0, 3),  # of the other half first
        (5.0, (9.0, 5.0, 0.0, 5.0), 2, 1),  # its own row is the first of its half
        (5.0, (5.0, 0.0, 5.0, 9.0), 1, 2),  # so is the one that is found
        (5.0, (0.0, 4.0, 9.0, 9.0), 0, 1),  # off by just what is allowed
        (5.0, (0.0, 3.9, 9.0, 9.0), 0, None),
        (2.0, (0.0, 2.0, 9.0, 9.0), 0, None),  # no farther from its own than two may be by rounding
        (2.5, (0.0, 2.5, 9.0, 9.0), 0, 1),
        (0.0, (0.0, 0.0, 9.0, 9.0), 0, None),  # equals the right one
        (7.0, (0.0, 5.0, 9.0, 9.0), 0, None),
    ],
)
def test_the_row_whose_tensor_another_one_holds(held: float, due: tuple[float, ...], own: int, found: int | None):
    assert other_row(torch.tensor([[held]]), rows(*due), own, 2, 1.0) == found


def turn(first: int, drafted: int, accepted: int, corrected: bool = False, bonus: bool = False) -> Round:
    return Round(first, drafted, accepted, corrected, bonus, 0, 0, 0, 5)


def right(request: Request = REQUEST) -> Evidence:
    """Return two traces that agree, the decoder's without rounds."""
    found = evidence(BUDGET, request)
    return replace(found, actual=replace(deepcopy(found.expected), rounds=[]))


def under(labels: tuple[int, int], first: int, si: int) -> Tensor:
    """Return the rows of a scale in a decode whose scales from `first` on are passed under other labels."""
    found = right()
    own, other = (NETWORK.condition(guidance_labels(torch.tensor(of), CLASSES)) for of in (REQUEST.labels, labels))
    x_RLD, cache = found.expected.intermediates.x_RLD, GrowingCache()
    for at in range(si + 1):
        condition = own if at < first else other
        x_RlD = x_RLD[:, PYRAMID.span(at)]
        if at == 0:
            x_RlD = scale_input(NETWORK, condition, None, 0)
        rows_RlV = NETWORK.logits(NETWORK.hidden(x_RlD, condition, cache, None), condition)
    return rows_RlV


def asked(image: int, si: int, rows_RlV: Tensor, half: int = 0, turns: list[list[Round]] | None = None) -> str | None:
    """Put one row of `rows_RlV`, moved as far as it says, into an image's row of one half; ask for its label."""
    found = right()
    found.actual.rounds = turns or []
    found.actual.intermediates.rows_RLV[2 * half + image, PYRAMID.span(si)] = rows_RlV[image]
    return label_said(found, image, si)


def label_said(found: Evidence, image: int, si: int) -> str | None:
    wrong = _rows._other_label(found, image, si)
    assert wrong is None or wrong[0] == "condition"
    return wrong and wrong[1]


@pytest.mark.parametrize("si", [0, 1, 2])
@pytest.mark.parametrize(("image", "label"), [(0, 2), (0, 1), (1, 2), (0, CLASSES)])
def test_rows_of_another_label_name_it_and_the_right_one(image: int, label: int, si: int):
    made_RlV = under((label, label), 0, si)
    assert asked(image, si, made_RlV) == f"the conditional rows of scale {si} are those of label {label}, not {image}"
    if label != CLASSES:
        due = f"the unconditional rows of scale {si} are those of label {label}, not {CLASSES}"
        assert asked(image, si, made_RlV, half=1) == due
    assert asked(image, si, under(REQUEST.labels, 0, si)) is None


def test_rows_of_another_label_may_be_two_budgets_off_and_no_more():
    for share, found in ((1.9, True), (2.1, False)):
        made_RlV = under((2, 2), 0, 1)
        made_RlV[0, 0, 0] += share * BUDGET.rows
        assert (asked(0, 1, made_RlV) is not None) is found


def test_where_nothing_may_move_the_same_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch):
    found = replace(right(), budget=Budget(0.0, 0.0, 0.0, "by hand"))
    rows_lV = found.actual.intermediates.rows_RLV[0, PYRAMID.span(1)]
    monkeypatch.setattr(_rows, "_rows_under", lambda *_: torch.stack((rows_lV + 1, rows_lV, rows_lV + 1)))
    said = "the conditional rows of scale 1 are those of label 2, not 0"
    assert label_said(found, 0, 1) == said


def test_a_window_alone_may_have_been_passed_under_another_label():
    """The scales before it are cached under the right one: neither the whole decode nor its last scale alone."""
    made_RlV = under((2, 2), 1, 2)
    said = "the conditional rows of scale 2 are those of label 2, not 0"
    assert asked(0, 2, made_RlV, turns=[[turn(0, 1, 1), turn(1, 2, 2)], []]) == said
    assert asked(0, 2, made_RlV) is None
    assert asked(0, 2, under((2, 2), 2, 2)) == said  # without rounds: that scale, or all of them


def test_of_a_large_table_the_labels_of_the_batch_and_the_unconditional_one_are_tried(monkeypatch: pytest.MonkeyPatch):
    assert suspects.MOST_LABELS == 32
    monkeypatch.setattr(suspects, "MOST_LABELS", CLASSES)
    assert asked(0, 1, under((2, 2), 0, 1)) is None
    for label in (1, CLASSES):
        assert f"label {label}, not 0" in asked(0, 1, under((label, label), 0, 1))
    monkeypatch.setattr(suspects, "MOST_LABELS", 2)
    assert asked(0, 1, under((CLASSES, CLASSES), 0, 1)) is None  # the first two: 0 and 1


def test_drawn_labels_are_asked_for_as_the_networks_classes():
    found = right(Request(None, 3, count=2, order="batch"))
    assert label_said(found, 0, 1) is None


def drafted(found: Evidence, si: int, share: int) -> None:
    """Let the decoder hold the draft's tokens at so many positions of a scale, and another wrong one at the last."""
    span = PYRAMID.span(si)
    drafted_l = suspects.drafted(found, 0, si, "token")
    expected_l = found.expected.tokens_BL[0, span]
    expected_l.copy_((drafted_l + 1) % NETWORK.config.V)
    found.actual.tokens_BL[0, span] = expected_l
    found.actual.tokens_BL[0, span.start : span.start + share] = drafted_l[:share]
    found.actual.tokens_BL[0, span.stop - 1] = (drafted_l[-1] + 2) % NETWORK.config.V


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        ([], False),  # nobody knows what was drafted
        ([turn(0, 1, 1), turn(1, 2, 2)], True),
        ([turn(0, 2, 2, bonus=True)], True),
        ([turn(0, 1, 1, bonus=True), turn(2, 1, 1)], False),  # a bonus is no draft's
        ([turn(0, 1, 1), turn(1, 0, 0, bonus=True), turn(2, 1, 1)], False),
    ],
)
def test_a_drafts_token_can_be_kept_where_something_was_drafted(turns: list[Round], kept: bool):
    found = right()
    drafted(found, 1, 4)
    found.actual.tokens_BL[0, PYRAMID.span(1)] = suspects.drafted(found, 0, 1, "token")
    found.actual.rounds = [turns, turns] if turns else []
    assert is_accepted_draft(found, 0, 2) is kept
    found.expected.tokens_BL.copy_(found.actual.tokens_BL)
    assert is_accepted_draft(found, 0, 2) is False  # nothing is wrong


def test_most_of_the_wrong_tokens_must_be_the_drafts(monkeypatch: pytest.MonkeyPatch):
    assert suspects.MOST_OF == 0.9
    found = right()
    drafted(found, 1, 1)  # one of two wrong tokens
    found.actual.rounds = [[turn(0, 2, 2)], []]
    assert not is_accepted_draft(found, 0, 2)
    monkeypatch.setattr(suspects, "MOST_OF", 0.5)
    assert is_accepted_draft(found, 0, 2)
    monkeypatch.setattr(suspects, "MOST_OF", 0.51)
    assert not is_accepted_draft(found, 0, 2)


def test_without_rounds_no_scale_is_known_to_lack_a_target_pass():
    assert unverified_scales(right().actual, 1) == frozenset()
