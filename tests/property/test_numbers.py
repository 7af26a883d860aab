import pytest

from harness.laws import Law
from harness.laws import _numbers as numbers


@pytest.mark.parametrize("law", numbers.LAWS, ids=lambda law: law.id)
def test_law_of_numbers(law: Law, law_holds) -> None:
    law_holds(law)
