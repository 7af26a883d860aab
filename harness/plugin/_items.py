"""Test items: a law each, and a case on digits each; and what JUnit says of them.

Promise: an item passes only where something was proved; it is skipped where a law does not apply to the decoder. Each
has verdict, component and the line that replays it as properties, however it ends; the words of a law are those of
`run_conformance`.
"""

import inspect
import json
import shlex
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from harness.decoders import OWN_DECODER, load_factory
from harness.errors import HarnessError
from harness.judge import Verdict
from harness.laws import LAWS, Law, Violation
from harness.plugin._checking import SEEN, DefectFound, KnownNotApplicable, Unproven, cases_of, check_digits, check_law
from harness.plugin._digits import DigitsCase
from harness.plugin._options import ROW, PluginOptions
from harness.pool import one_thread
from harness.signals import each_warning_once


class Suite(pytest.Collector):
    """All items of one decoder; they are where its factory is, in the project, or in no file."""

    def __init__(self, *, options: PluginOptions, line: int | None, **rest: Any) -> None:
        super().__init__(**rest)
        self.options, self.line = options, line

    @classmethod
    def of(cls, session: pytest.Session, options: PluginOptions) -> Self:
        factory = inspect.unwrap(load_factory(options.name))
        try:
            place, line = Path(inspect.getfile(factory)), inspect.getsourcelines(factory)[1] - 1
        except (OSError, TypeError):  # an object of a class, or of no file
            place, line = Path(), None
        if not place.is_relative_to(session.path):
            place, line = session.path, None
        return cls.from_parent(session, name="sdvar", nodeid="sdvar", path=place, options=options, line=line)

    def collect(self) -> Iterator[pytest.Item]:
        for law in LAWS:
            yield CheckItem.from_parent(self, name=law.id, subject=law)
        for case in cases_of(self.options):
            yield CheckItem.from_parent(self, name=case.name, subject=case)


class CheckItem(pytest.Item):
    """One law, in as many cases as the options say, or one setting on digits."""

    parent: Suite

    def __init__(self, *, subject: Law | DigitsCase, **rest: Any) -> None:
        super().__init__(**rest)
        self.subject = subject

    def runtest(self) -> None:
        with alone():
            if isinstance(self.subject, Law):
                check_law(self.subject, self.parent.options, self.stash)
            else:
                check_digits(self.subject, self.parent.options, self.stash)

    @property
    def component(self) -> str:
        return ", ".join(self.subject.watches) if isinstance(self.subject, Law) else "decode"

    @property
    def replay(self) -> str:
        return replay_line(self.config, "-k", self.name)

    def _initrequest(self) -> None:
        """Let pytest-retry, which asks this of every item, begin anew: there are no fixtures to forget."""

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Say where it is, for an editor, an annotation, a list of tests."""
        return self.path, self.parent.line, f"sdvar::{self.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show what was found, and no frames of the harness; of a crash those of the decoder."""
        error = excinfo.value
        if not isinstance(error, HarnessError | KnownNotApplicable | Unproven | DefectFound):
            return super().repr_failure(excinfo, style)
        cause = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
        return f"{cause}{error}"


@contextmanager
def alone() -> Iterator[None]:
    """Keep a check and its neighbours apart.

    It computes with one thread; the global generator is left as it was; a warning is shown once, and is no error of
    the decoder's whatever the project's filters say.
    """
    with one_thread(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(), each_warning_once():
        warnings.simplefilter("default")
        yield


NOT_APPLICABLE = "not applicable"
# Options that change what a test does; they travel in its replay line.
OPTIONS = (
    "--sdvar-implementation", "--sdvar-device", "--sdvar-checkout", "--sdvar-option", "--sdvar-patch-nums",
    "--sdvar-dtype", "--sdvar-examples", "--sdvar-seed", "--sdvar-sequential",
)  # fmt: skip
USUAL = (None, "", 0, False, "cpu", OWN_DECODER)
NAMES = ("verdict", "component", "replay")  # of the properties


def add_properties(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, component: str, replay: str
) -> None:
    """Put the properties of what happened so far into a report, and into the item; JUnit reads a test's last report."""
    broken_before = ("verdict", Verdict.DEFECT.value) in item.user_properties
    if report.when != "teardown" or (report.outcome == "failed" and not broken_before):
        error = call.excinfo.value if call.excinfo else None
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.outcome == "skipped" else report.outcome
        if report.when == "call" and outcome == "failed" and error is None:
            outcome = "passed"  # an unexpected pass: the law holds
        others = [each for each in item.user_properties if each[0] not in NAMES]
        words = _said(item, error, component, replay)
        properties = zip(NAMES, (_verdict(report.when, outcome, error), *words), strict=True)
        item.user_properties[:] = [*others, *properties]
    report.user_properties = list(item.user_properties)
    if report.when == "call" and SEEN in item.stash:
        setattr(report, ROW, json.dumps(asdict(item.stash[SEEN])))


def mark_known(items: Sequence[pytest.Item], known: Mapping[str, str]) -> None:
    """Mark what is known to fail: it must, by a defect or by proving nothing; a refused setting is neither."""
    for item in items:
        if isinstance(item, CheckItem) and (reason := known.get(item.name)) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True, raises=(Violation, DefectFound, Unproven)))


def _said(item: pytest.Item, error: BaseException | None, component: str, replay: str) -> tuple[str, str]:
    """Return component and replay of a test, by what it raised and saw where that says more."""
    row = item.stash.get(SEEN, None)
    if violation := _violation(error):
        component, replay = ", ".join(violation.law.watches), violation.replay
        if violation.factory == "FACTORY":  # of a decoder without a name of its own: as it was given
            given = repr(item.config.getoption("--sdvar-implementation") or OWN_DECODER)
            replay = Violation(violation.law, violation.case, violation.found, given, violation.options).replay
    if isinstance(error, DefectFound) and row is not None:
        component, replay = ", ".join(row.watches), row.replay or replay
    return component, replay


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


def replay_line(config: pytest.Config, *which: str, options: Sequence[str] = OPTIONS) -> str:
    """Return the line that runs a test again, `which` are the words that name it, with the options that were given."""
    words = ["python", "-m", "pytest", *which]
    for option in options:
        given = config.getoption(option, None)
        for value in given if isinstance(given, list) else [given]:
            if value not in (USUAL if option != "--sdvar-seed" else (None,)):
                words.append(option if value is True else f"{option}={value}")
    return shlex.join(words)
