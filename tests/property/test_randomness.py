import pytest

from harness.laws import Law, randomness


@pytest.mark.parametrize("law", randomness.LAWS, ids=lambda law: law.id)
def test_law_of_randomness(law: Law, law_holds) -> None:
    law_holds(law)
