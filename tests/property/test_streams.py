import pytest

from harness.laws import Law
from harness.laws import _streams as streams


@pytest.mark.parametrize("law", streams.LAWS, ids=lambda law: law.id)
def test_law_of_streams(law: Law, law_holds) -> None:
    law_holds(law)
