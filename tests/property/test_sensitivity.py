import pytest

from harness.laws import Law
from harness.laws import _sensitivity as sensitivity


@pytest.mark.parametrize("law", sensitivity.LAWS, ids=lambda law: law.id)
def test_law_of_sensitivity(law: Law, law_holds) -> None:
    law_holds(law)
