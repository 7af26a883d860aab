import pytest

from harness.laws import Law
from harness.laws import _rules as rules


@pytest.mark.parametrize("law", rules.LAWS, ids=lambda law: law.id)
def test_law_of_rules(law: Law, law_holds) -> None:
    law_holds(law)
