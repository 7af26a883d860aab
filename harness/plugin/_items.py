"""Test items: a law each, and a case on digits each.

Promise: an item passes only where something was proved; it is skipped where a law does not apply to the decoder.
"""

import inspect
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from harness.decoders import load_factory
from harness.errors import HarnessError
from harness.laws import LAWS, Law
from harness.plugin._checking import DefectFound, KnownNotApplicable, Unproven, cases_of, check_digits, check_law
from harness.plugin._digits import DigitsCase
from harness.plugin._options import PluginOptions
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

    Tiny tensors gain nothing from a second thread, and on a busy machine threads that wait for each other crawl; the
    global generator is left as it was; a warning is shown once, and is no error of the decoder's whatever the project's
    filters say.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), each_warning_once():
            warnings.simplefilter("default")
            yield
    finally:
        torch.set_num_threads(threads)
