"""Verdict, component and replay line in the report of every test of a folder whose conftest imports the hook."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from harness.plugin._items import add_properties


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    add_properties(item, call, report)
    return report
