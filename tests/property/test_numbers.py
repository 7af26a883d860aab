import pytest

from harness.laws import Law, numbers


@pytest.mark.parametrize("law", numbers.LAWS, ids=lambda law: law.id)
def test_law_of_numbers(law: Law, law_holds) -> None:
    law_holds(law)
