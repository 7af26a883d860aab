import pytest

from harness.laws import Law
from harness.laws import _guidance as guidance


@pytest.mark.parametrize("law", guidance.LAWS, ids=lambda law: law.id)
def test_law_of_guidance(law: Law, law_holds) -> None:
    law_holds(law)
