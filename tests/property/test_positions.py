import pytest
from hypothesis import given

from harness.laws import Law
from harness.protocol.pyramid import ScalePyramid
from tests.drawn import pyramids
from tests.helpers import laws_of


@pytest.mark.parametrize("law", laws_of("positions"), ids=lambda law: law.id)
def test_law_of_positions(law: Law, law_holds) -> None:
    law_holds(law)


@given(pyramids)
def test_spans_partition_the_pyramid(sides: tuple[int, ...]) -> None:
    pyramid = ScalePyramid(sides)
    spans = [range(pyramid.L)[pyramid.span(si)] for si in pyramid]
    assert [position for span in spans for position in span] == list(range(pyramid.L))
    assert [len(span) for span in spans] == [side * side for side in sides]
    assert [pyramid.level_of(position) for position in range(pyramid.L)] == pyramid.levels()
