"""Profiles, the decoder under test, and the count of what was exercised."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from harness.errors import InputError
from harness.implementations import DEFAULT, load_factory
from harness.laws import Law, NotOffered, Subject
from tests.property.strategies import cases

# print_blob: a failure prints the line that replays it; no deadline: a shared machine is slow at times
common = {"deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("dev", max_examples=3, **common)
settings.register_profile("ci", max_examples=25, **common)
settings.register_profile("deep", max_examples=1500, **common)
COSTLY = {"acceptance.distribution": 5, "acceptance.support": 2, "acceptance.independent": 2, "masks.dependency": 2}


@dataclass
class Count:
    examples: int = 0
    exercised: int = 0


COUNTS: dict[str, Count] = defaultdict(Count)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--implementation", default=DEFAULT, help="decoder under test, package.module:factory")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile("ci")


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    return Subject(load_factory(pytestconfig.getoption("--implementation")))


def law_holds(law: Law, subject: Subject) -> None:
    """Check a law in as many examples as the profile says; costly ones in a share of them."""
    examples = max(2, settings().max_examples // COSTLY.get(law.id, 1))

    @settings(max_examples=examples)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(cases(), label="case")
        try:
            exercised = law.check(subject, case)
        except InputError:
            assume(False)
        count = COUNTS[law.id]
        count.examples += 1
        count.exercised += exercised

    try:
        check()
    except NotOffered as why:
        pytest.skip(f"does not apply: {why}")


@pytest.fixture(name="law_holds")
def law_holds_fixture(subject: Subject):
    return lambda law: law_holds(law, subject)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COUNTS:
        return
    terminalreporter.section("laws")
    for name, count in sorted(COUNTS.items()):
        share = count.exercised / count.examples
        terminalreporter.write_line(f"{name:28s} {count.examples:5d} examples, {share:4.0%} not trivial")
    total = sum(count.examples for count in COUNTS.values())
    terminalreporter.write_line(f"{'all':28s} {total:5d} examples")
