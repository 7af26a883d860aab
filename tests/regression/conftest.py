"""What JUnit is told of regressions."""

from harness.plugin.junit import pytest_runtest_makereport, told

__all__ = ["pytest_runtest_makereport", "told"]
