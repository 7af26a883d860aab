"""What JUnit is told of every law and regression: verdict, component, and the line that replays it.

Promise: each test has all three as properties, however it ends; the words of a law are those of `run_conformance`.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.judge.verdict import Verdict
from harness.laws import Law, Violation
from harness.runs.factory import DEFAULT

NAMES = ("verdict", "component", "replay")
NOT_APPLICABLE = "not applicable"
# Options that change what a test does; they travel in its replay line.
OPTIONS = (
    "--implementation", "--device", "--checkout", "--option", "--patch-nums", "--dtype", "--examples",
    "--hypothesis-profile", "--hypothesis-seed",
)  # fmt: skip
TOLD = pytest.StashKey[dict[str, str]]()


class Unproven(AssertionError):  # noqa: N818
    """A law was checked, and nothing follows: it was never exercised, or most of its cases were refused."""


@pytest.fixture
def told(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return what a test itself says of its verdict, component and replay; it wins where the test does not pass."""
    return request.node.stash.setdefault(TOLD, {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the properties of what happened so far into the report; JUnit reads the last one of a test."""
    report = yield
    broken_before = ("verdict", Verdict.DEFECT.value) in item.user_properties
    if report.when != "teardown" or (report.outcome == "failed" and not broken_before):
        error = call.excinfo.value if call.excinfo else None
        found = properties(item, report.when, report.outcome, error)
        item.user_properties[:] = [*(p for p in item.user_properties if p[0] not in NAMES), *found.items()]
    report.user_properties = list(item.user_properties)
    return report


def properties(item: pytest.Item, when: str, outcome: str, error: BaseException | None) -> dict[str, str]:
    """Return the three properties.

    Args:
        item: the test.
        when: setup, call or teardown.
        outcome: passed, failed or skipped.
        error: what it raised.
    """
    law = _law(item)
    family = item.module.__name__.rpartition("test_")[2]  # type: ignore[attr-defined]
    component = ", ".join(law.watches) if law else getattr(item.module, "COMPONENT", family)  # type: ignore[attr-defined]
    found = {"verdict": verdict(when, outcome, error), "component": component, "replay": replay(item)}
    if violation := broken(error):
        found |= {"component": ", ".join(violation.law.watches), "replay": _with_name(violation, item).replay}
    return found | (item.stash.get(TOLD, {}) if outcome != "passed" else {})


def verdict(when: str, outcome: str, error: BaseException | None) -> str:
    """Return the verdict in words: what never ran proves nothing, what ran and failed is a defect."""
    if outcome == "passed":
        return Verdict.IDENTICAL.value if when == "call" else Verdict.INCONCLUSIVE.value
    if outcome == "skipped":
        return NOT_APPLICABLE
    refused = isinstance(error, Unproven) or (isinstance(error, HarnessError) and not broken(error))
    return (Verdict.INCONCLUSIVE if refused or when == "setup" else Verdict.DEFECT).value


def broken(error: BaseException | None) -> Violation | None:
    """Return the violation that an error is, or the first in a group of them."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := broken(each))), None)
    return error if isinstance(error, Violation) else None


def replay(item: pytest.Item) -> str:
    """Return the command line that runs a test alone, with the options that change it."""
    words = ["python", "-m", "pytest", item.nodeid]
    for option in OPTIONS if _takes_options(item) else ():
        given = item.config.getoption(option, None)
        unset = (None,) if option == "--hypothesis-seed" else (None, "", 0, "cpu", DEFAULT)
        words += [
            f"{option}={value}" for value in (given if isinstance(given, list) else [given]) if value not in unset
        ]
    seed = getattr(getattr(item, "obj", None), "_hypothesis_internal_use_generated_seed", None)
    if seed is not None and not any(word.startswith("--hypothesis-seed") for word in words):
        words.append(f"--hypothesis-seed={seed}")  # what Hypothesis, too, prints of a test that failed
    return shlex.join(words)


def golden_told(found: dict[str, Any], *files: str) -> dict[str, str]:
    """Return component and replay of the first defect in the JSON of `golden check`; empty where there is none."""
    cases = [case for file in found["files"] for case in file["cases"] if case["defects_listed"]]
    if not cases:
        return {}
    words = ["sdvar-harness", "golden", "check", *files, "--only", cases[0]["id"]]
    return {"component": cases[0]["defects_listed"][0]["component"], "replay": shlex.join(words)}


def _takes_options(item: pytest.Item) -> bool:
    return "property" in item.path.parts


def _with_name(violation: Violation, item: pytest.Item) -> Violation:
    """Return a violation whose replay names the decoder as it was given, where it has no name of its own."""
    if violation.factory != "FACTORY":
        return violation
    given = repr(item.config.getoption("--implementation", DEFAULT))
    return Violation(violation.law, violation.case, violation.found, given, violation.options)


def _law(item: pytest.Item) -> Law | None:
    spec = getattr(item, "callspec", None)
    law = spec.params.get("law") if spec else None
    return law if isinstance(law, Law) else None
