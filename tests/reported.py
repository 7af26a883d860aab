"""Verdict, component and replay line in the report of every test of a folder whose conftest imports the hook."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from harness.laws import Law
from harness.plugin._items import add_properties, replay_line

OWN = pytest.StashKey[dict[str, str]]()  # what a test says itself; it counts where the test does not pass
HYPOTHESIS = ("--hypothesis-profile", "--hypothesis-seed")  # of tests that draw for themselves


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    spec, module = getattr(item, "callspec", None), getattr(item, "module", None)
    law = spec.params.get("law") if spec else None
    if isinstance(law, Law):
        component, replay = ", ".join(law.watches), replay_line(item.config, item.nodeid)
    else:  # the module's word for it, or the last word of the module's name
        component = getattr(module, "COMPONENT", str(getattr(module, "__name__", item.name)).rpartition("test_")[2])
        replay = replay_line(item.config, item.nodeid, options=HYPOTHESIS)
    seed = getattr(getattr(item, "obj", None), "_hypothesis_internal_use_generated_seed", None)
    if seed is not None and "--hypothesis-seed" not in replay:
        replay += f" --hypothesis-seed={seed}"  # what Hypothesis, too, prints of a test that failed
    own = item.stash.get(OWN, {}) if call.excinfo else {}
    add_properties(item, call, report, own.get("component", component), own.get("replay", replay))
    return report
