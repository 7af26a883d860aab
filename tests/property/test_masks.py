import pytest

from harness.laws import Law, masks


@pytest.mark.parametrize("law", masks.LAWS, ids=lambda law: law.id)
def test_law_of_masks(law: Law, law_holds) -> None:
    law_holds(law)
