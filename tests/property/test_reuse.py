import pytest

from harness.laws import Law
from harness.laws import _reuse as reuse


@pytest.mark.parametrize("law", reuse.LAWS, ids=lambda law: law.id)
def test_law_of_reuse(law: Law, law_holds) -> None:
    law_holds(law)
