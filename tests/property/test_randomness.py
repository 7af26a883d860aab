import pytest

from harness.laws import Law
from tests.helpers import laws_of


@pytest.mark.parametrize("law", laws_of("randomness"), ids=lambda law: law.id)
def test_law_of_randomness(law: Law, law_holds) -> None:
    law_holds(law)
