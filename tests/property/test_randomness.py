import pytest

from harness.laws import Law
from harness.laws import _randomness as randomness


@pytest.mark.parametrize("law", randomness.LAWS, ids=lambda law: law.id)
def test_law_of_randomness(law: Law, law_holds) -> None:
    law_holds(law)
