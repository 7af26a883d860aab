"""What JUnit is told of every law, case and regression: verdict, component, and the line that replays it.

Promise: each such test has all three as properties, however it ends; the words of a law are those of `run_conformance`.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest

from harness.decoders.factory import DEFAULT
from harness.errors import HarnessError
from harness.judge.verdict import Verdict
from harness.laws import Law, Violation
from harness.plugin.checking import SEEN, Struck, Unproven, WrongOnDigits
from harness.plugin.items import DigitsItem, LawItem
from harness.plugin.seen import ROW
from harness.report.laws import HELD

NAMES = ("verdict", "component", "replay")
NOT_APPLICABLE = "not applicable"
# Options that change what a test does; they travel in its replay line.
OPTIONS = (
    "--sdvar-implementation", "--sdvar-device", "--sdvar-checkout", "--sdvar-option", "--sdvar-patch-nums",
    "--sdvar-dtype", "--sdvar-examples", "--sdvar-seed", "--sdvar-sequential",
)  # fmt: skip
HYPOTHESIS = ("--hypothesis-profile", "--hypothesis-seed")  # of tests that draw for themselves
USUAL = (None, "", 0, False, "cpu", DEFAULT)
TOLD = pytest.StashKey[dict[str, str]]()


@pytest.fixture
def told(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return what a test itself says of its verdict, component and replay; it wins where the test does not pass."""
    found: dict[str, str] = request.node.stash.setdefault(TOLD, {})
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell of every test of a folder whose conftest imports this; the plugin itself tells of laws and cases."""
    report = yield
    tell(item, call, report)
    return report


def tell(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Put the properties of what happened so far into a report; JUnit reads the last one of a test.

    Args:
        item: the test.
        call: what happened.
        report: of it; changed.
    """
    broken_before = ("verdict", Verdict.DEFECT.value) in item.user_properties
    if report.when != "teardown" or (report.outcome == "failed" and not broken_before):
        error = call.excinfo.value if call.excinfo else None
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.outcome == "skipped" else report.outcome
        if report.when == "call" and outcome == "failed" and error is None:
            outcome = "passed"  # an unexpected pass: the law holds
        found = properties(item, report.when, outcome, error)
        item.user_properties[:] = [*(p for p in item.user_properties if p[0] not in NAMES), *found.items()]
    report.user_properties = list(item.user_properties)
    if report.when == "call" and SEEN in item.stash:
        setattr(report, ROW, asdict(item.stash[SEEN]))


def case_of(item: pytest.Item) -> str:
    """Return the law or case that a test is of; empty of any other test."""
    law = law_of(item)
    return law.id if law else item.case.name if isinstance(item, DigitsItem) else ""


def mark_known(items: Sequence[pytest.Item], known: Mapping[str, str]) -> None:
    """Mark what is known to fail: it must, by a defect or by proving nothing; a refused setting is neither."""
    for item in items:
        if (reason := known.get(case_of(item))) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=(Violation, WrongOnDigits, Unproven)))


def properties(item: pytest.Item, when: str, outcome: str, error: BaseException | None) -> dict[str, str]:
    """Return the three properties.

    Args:
        item: the test.
        when: setup, call or teardown.
        outcome: passed, failed, skipped or xfailed.
        error: what it raised.
    """
    found = {"verdict": verdict(when, outcome, error), "component": _component(item), "replay": replay(item)}
    if violation := broken(error):
        found |= {"component": ", ".join(violation.law.watches), "replay": _with_name(violation, item).replay}
    seen = item.stash.get(SEEN, None)
    if isinstance(error, WrongOnDigits) and seen is not None:
        found |= {"component": ", ".join(seen.watches), "replay": seen.replay or found["replay"]}
    return found | (item.stash.get(TOLD, {}) if outcome != "passed" else {})


def _component(item: pytest.Item) -> str:
    """Return what a test watches: its law, its module's word for it, or the last word of the module's name."""
    law, module = law_of(item), getattr(item, "module", None)
    if law:
        return ", ".join(law.watches)
    if isinstance(item, DigitsItem):
        return "decode"
    return getattr(module, "COMPONENT", str(getattr(module, "__name__", item.name)).rpartition("test_")[2])


def verdict(when: str, outcome: str, error: BaseException | None) -> str:
    """Return the verdict in words: what never ran proves nothing, what ran and failed is a defect."""
    if outcome == "passed":
        return HELD if when == "call" else Verdict.INCONCLUSIVE.value
    if outcome == "skipped":
        return NOT_APPLICABLE
    refused = isinstance(error, Struck | Unproven) or (isinstance(error, HarnessError) and not broken(error))
    return (Verdict.INCONCLUSIVE if refused or when == "setup" else Verdict.DEFECT).value


def broken(error: BaseException | None) -> Violation | None:
    """Return the violation that an error is, or the first in a group of them."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := broken(each))), None)
    return error if isinstance(error, Violation) else None


def replay(item: pytest.Item) -> str:
    """Return the command line that runs a test alone, with the options that change it."""
    which = ["-k", item.name] if isinstance(item, LawItem | DigitsItem) else [item.nodeid]
    words = ["python", "-m", "pytest", *which]
    for option in OPTIONS if case_of(item) else HYPOTHESIS if hasattr(item, "obj") else ():
        given = item.config.getoption(option, None)
        for value in given if isinstance(given, list) else [given]:
            if value not in (USUAL if option != "--sdvar-seed" else (None,)):
                words.append(option if value is True else f"{option}={value}")
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


def _with_name(violation: Violation, item: pytest.Item) -> Violation:
    """Return a violation whose replay names the decoder as it was given, where it has no name of its own."""
    if violation.factory != "FACTORY":
        return violation
    given = repr(item.config.getoption("--sdvar-implementation") or DEFAULT)
    return Violation(violation.law, violation.case, violation.found, given, violation.options)


def law_of(item: pytest.Item) -> Law | None:
    """Return the law that a test is of: an item of the plugin, or a test with a parameter of that name."""
    if isinstance(item, LawItem):
        return item.law
    spec = getattr(item, "callspec", None)
    law = spec.params.get("law") if spec else None
    return law if isinstance(law, Law) else None
