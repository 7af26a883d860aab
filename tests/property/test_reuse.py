import pytest

from harness.laws import Law
from tests.helpers import laws_of


@pytest.mark.parametrize("law", laws_of("reuse"), ids=lambda law: law.id)
def test_law_of_reuse(law: Law, law_holds) -> None:
    law_holds(law)
