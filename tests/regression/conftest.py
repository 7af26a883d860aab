"""What JUnit is told of regressions."""

from tests.told import pytest_runtest_makereport, told

__all__ = ["pytest_runtest_makereport", "told"]
