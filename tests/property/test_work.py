import pytest

from harness.laws import Law
from harness.laws import _work as work


@pytest.mark.parametrize("law", work.LAWS, ids=lambda law: law.id)
def test_law_of_work(law: Law, law_holds) -> None:
    law_holds(law)
