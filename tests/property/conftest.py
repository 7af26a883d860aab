"""Profiles, the decoder under test, and the count of what was exercised."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings

from harness.errors import InputError
from harness.laws import Case, Law, NotOffered, Subject
from harness.laws.strategies import cases
from harness.runs.factory import DEFAULT, load_factory

# print_blob and the case in the message: a failure prints what replays it. No deadline: a shared machine is slow at
# times. No database: a run depends on its seed alone (--hypothesis-seed). No explanations: a failure fits one screen.
common = {
    "deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck), "database": None,
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
}  # fmt: skip
settings.register_profile("dev", max_examples=12, **common)
settings.register_profile("ci", max_examples=40, **common)
settings.register_profile("deep", max_examples=1500, **common)
# Laws that decode many times, or one large batch, try a share of the examples.
COSTLY = {"acceptance.distribution": 4, "acceptance.support": 2, "acceptance.independent": 2, "masks.dependency": 2}


@dataclass
class Count:
    """What one law saw."""

    examples: int = 0
    exercised: int = 0
    skipped: str = ""

    def __str__(self) -> str:
        if self.skipped:
            return f"does not apply: {self.skipped}"
        return f"{self.examples:5d} examples, {self.exercised / max(1, self.examples):4.0%} not trivial"


COUNTS: dict[str, Count] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--implementation", default=DEFAULT, help="decoder under test, package.module:factory")
    parser.addoption("--device", default="cpu", help="where the laws' networks live: cpu, cuda or cuda:N")


def pytest_configure(config: pytest.Config) -> None:
    try:
        load_factory(config.getoption("--implementation", DEFAULT))
    except InputError as error:
        raise pytest.UsageError(str(error)) from None
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    return Subject(load_factory(pytestconfig.getoption("--implementation", DEFAULT)))


@pytest.fixture(autouse=True)
def global_generator_untouched() -> Iterator[None]:
    """Nothing may depend on, or move, the global generator: so a failure replays from its case alone."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread, and on a busy machine threads that wait for each other crawl."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def law_holds(subject: Subject, pytestconfig: pytest.Config) -> Callable[[Law], None]:
    device = pytestconfig.getoption("--device", "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        pytest.fail(f"device={device}: there is no CUDA device here; run without --device")
    return lambda law: check_law(law, subject, device)


def check_law(law: Law, subject: Subject, device: str = "cpu") -> None:
    """Check a law in as many examples as the profile says; fail if not one of them exercised it."""
    __tracebackhide__ = True
    count = COUNTS[law.id] = Count()
    reasons: list[str] = []

    @settings(max_examples=max(4, settings().max_examples // COSTLY.get(law.id, 1)))
    @given(cases())
    def holds(case: Case) -> None:
        __tracebackhide__ = True
        try:
            count.exercised += law.check(subject, replace(case, device=device))
        except (NotOffered, InputError) as why:
            reasons.append(str(why))
            if isinstance(why, InputError):
                reject()
            return
        count.examples += 1

    holds()
    if not count.examples:
        count.skipped = reasons[0]
        pytest.skip(count.skipped)
    assert count.exercised, f"{law.id}: {count.examples} examples, and every one was trivial: nothing was tested"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under pytest-xdist, send this worker's counts to the process that prints them."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["laws"] = {name: asdict(count) for name, count in COUNTS.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Take a worker's counts; every law runs in one worker."""
    for name, count in getattr(node, "workeroutput", {}).get("laws", {}).items():
        COUNTS[name] = Count(**count)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COUNTS:
        return
    terminalreporter.section("laws")
    for name, count in sorted(COUNTS.items()):
        terminalreporter.write_line(f"{name:28s} {count}")
    examples = sum(count.examples for count in COUNTS.values())
    terminalreporter.write_line(f"{'all':28s} {examples:5d} examples of {len(COUNTS)} laws")
