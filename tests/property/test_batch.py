import pytest

from harness.laws import Law
from harness.laws import _batch as batch


@pytest.mark.parametrize("law", batch.LAWS, ids=lambda law: law.id)
def test_law_of_batch(law: Law, law_holds) -> None:
    law_holds(law)
