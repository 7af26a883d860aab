"""What JUnit says of every law, case and regression: verdict, component, and the line that replays it.

Promise: each such test has all three as properties, however it ends; the words of a law are those of `run_conformance`.
"""

import shlex
from collections.abc import Mapping, Sequence

import pytest

from harness.decoders import OWN_DECODER
from harness.errors import HarnessError
from harness.judge import Verdict
from harness.laws import Law, Violation
from harness.plugin._checking import SEEN, DefectFound, KnownNotApplicable, Unproven
from harness.plugin._items import CheckItem
from harness.plugin._options import ROW

NOT_APPLICABLE = "not applicable"
# Options that change what a test does; they travel in its replay line.
OPTIONS = (
    "--sdvar-implementation", "--sdvar-device", "--sdvar-checkout", "--sdvar-option", "--sdvar-patch-nums",
    "--sdvar-dtype", "--sdvar-examples", "--sdvar-seed", "--sdvar-sequential",
)  # fmt: skip
HYPOTHESIS = ("--hypothesis-profile", "--hypothesis-seed")  # of tests that draw for themselves
USUAL = (None, "", 0, False, "cpu", OWN_DECODER)
NAMES = ("verdict", "component", "replay")  # of the properties
OWN = pytest.StashKey[dict[str, str]]()  # what a test says itself; it counts where the test does not pass


def add_properties(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Put the properties of what happened so far into a report, and into the item; JUnit reads a test's last report."""
    broken_before = ("verdict", Verdict.DEFECT.value) in item.user_properties
    if report.when != "teardown" or (report.outcome == "failed" and not broken_before):
        error = call.excinfo.value if call.excinfo else None
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.outcome == "skipped" else report.outcome
        if report.when == "call" and outcome == "failed" and error is None:
            outcome = "passed"  # an unexpected pass: the law holds
        others = [each for each in item.user_properties if each[0] not in NAMES]
        item.user_properties[:] = [*others, *_properties(item, report.when, outcome, error).items()]
    report.user_properties = list(item.user_properties)
    if report.when == "call" and SEEN in item.stash:
        setattr(report, ROW, item.stash[SEEN].to_json())


def case_of(item: pytest.Item) -> str:
    """Return the law or case that a test is of; empty of any other test."""
    law = _law_of(item)
    return law.id if law else item.name if isinstance(item, CheckItem) else ""


def mark_known(items: Sequence[pytest.Item], known: Mapping[str, str]) -> None:
    """Mark what is known to fail: it must, by a defect or by proving nothing; a refused setting is neither."""
    for item in items:
        if (reason := known.get(case_of(item))) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=(Violation, DefectFound, Unproven)))


def _properties(item: pytest.Item, when: str, outcome: str, error: BaseException | None) -> dict[str, str]:
    """Return the three properties of a test that passed, failed, was skipped or xfailed, and what it raised."""
    component, replay, row = _component(item), _replay(item), item.stash.get(SEEN, None)
    if violation := _violation(error):
        component, replay = ", ".join(violation.law.watches), violation.replay
        if violation.factory == "FACTORY":  # of a decoder without a name of its own: as it was given
            given = repr(item.config.getoption("--sdvar-implementation") or OWN_DECODER)
            replay = Violation(violation.law, violation.case, violation.found, given, violation.options).replay
    if isinstance(error, DefectFound) and row is not None:
        component, replay = ", ".join(row.watches), row.replay or replay
    properties = dict(zip(NAMES, (_verdict(when, outcome, error), component, replay), strict=True))
    return properties if outcome == "passed" else properties | item.stash.get(OWN, {})


def _component(item: pytest.Item) -> str:
    """Return what a test watches: its law, its module's word for it, or the last word of the module's name."""
    law, module = _law_of(item), getattr(item, "module", None)
    if law:
        return ", ".join(law.watches)
    if isinstance(item, CheckItem):
        return "decode"
    return getattr(module, "COMPONENT", str(getattr(module, "__name__", item.name)).rpartition("test_")[2])


def _verdict(when: str, outcome: str, error: BaseException | None) -> str:
    """Return the verdict in words: what never ran proves nothing, what ran and failed is a defect."""
    if outcome == "passed":
        return (Verdict.IDENTICAL if when == "call" else Verdict.INCONCLUSIVE).value
    if outcome == "skipped":
        return NOT_APPLICABLE
    unproven = isinstance(error, KnownNotApplicable | Unproven)
    refused = isinstance(error, HarnessError) and not _violation(error)
    return (Verdict.INCONCLUSIVE if unproven or refused or when == "setup" else Verdict.DEFECT).value


def _violation(error: BaseException | None) -> Violation | None:
    """Return the violation that an error is, or the first in a group of them."""
    if isinstance(error, BaseExceptionGroup):
        return next((violation for each in error.exceptions if (violation := _violation(each))), None)
    return error if isinstance(error, Violation) else None


def _replay(item: pytest.Item) -> str:
    which = ["-k", item.name] if isinstance(item, CheckItem) else [item.nodeid]
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


def _law_of(item: pytest.Item) -> Law | None:
    """Return the law that a test is of: an item of the plugin, or a test with a parameter of that name."""
    spec = getattr(item, "callspec", None)
    law = item.subject if isinstance(item, CheckItem) else spec.params.get("law") if spec else None
    return law if isinstance(law, Law) else None
