import pytest

from harness.laws import Law, state


@pytest.mark.parametrize("law", state.LAWS, ids=lambda law: law.id)
def test_law_of_state(law: Law, law_holds) -> None:
    law_holds(law)
