import pytest

from harness.laws import Law, guidance


@pytest.mark.parametrize("law", guidance.LAWS, ids=lambda law: law.id)
def test_law_of_guidance(law: Law, law_holds) -> None:
    law_holds(law)
