import pytest

from harness.laws import Law
from harness.laws import _acceptance as acceptance


@pytest.mark.parametrize("law", acceptance.LAWS, ids=lambda law: law.id)
def test_law_of_acceptance(law: Law, law_holds) -> None:
    law_holds(law)
