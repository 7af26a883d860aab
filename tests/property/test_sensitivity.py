import pytest

from harness.laws import Law
from tests.helpers import laws_of


@pytest.mark.parametrize("law", laws_of("sensitivity"), ids=lambda law: law.id)
def test_law_of_sensitivity(law: Law, law_holds) -> None:
    law_holds(law)
