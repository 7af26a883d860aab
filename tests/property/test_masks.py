import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.laws import Law
from harness.laws._case import SMALL
from harness.protocol.pyramid import ScalePyramid
from harness.reference._steps import hand_off_mask
from tests.helpers import laws_of


@pytest.mark.parametrize("law", laws_of("masks"), ids=lambda law: law.id)
def test_law_of_masks(law: Law, law_holds) -> None:
    law_holds(law)


def may_see(sd_mask: int, row: tuple[int, int], column: tuple[int, int], entry: int) -> bool:
    """The definition, token by token; a token is (position, scale)."""
    (i, of_i), (j, of_j) = row, column
    if sd_mask in (2, 5) and of_i == entry:
        return True
    if sd_mask in (1, 2):
        return i == j or (j < i and of_i != of_j)
    return of_i >= of_j if sd_mask == 3 else of_i == of_j


@given(st.sampled_from(SMALL), st.integers(0, 4), st.integers(1, 5))
def test_hand_off_masks_are_their_definition(sides: tuple[int, ...], entry: int, sd_mask: int) -> None:
    pyramid = ScalePyramid(sides)
    entry = min(entry, pyramid.S - 1)
    tokens = list(enumerate(pyramid.levels()))[: pyramid.end(entry)]
    due = torch.tensor([[may_see(sd_mask, row, column, entry) for column in tokens] for row in tokens])
    mask_11nn = hand_off_mask(pyramid, entry, sd_mask, torch.device("cpu"), torch.float64)
    assert mask_11nn.shape == (1, 1, len(tokens), len(tokens))
    assert torch.equal(mask_11nn[0, 0] == 0, due)
    assert bool((mask_11nn[0, 0][~due] == -torch.inf).all())
