"""Profiles, the decoder under test, and the count of what was exercised."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from harness.errors import InputError
from harness.judge.verdict import Verdict
from harness.laws import Case, Law, NotOffered, Subject
from harness.laws.search import ROUNDS, SHRINK_S, Patience, Scope
from harness.laws.strategies import cases
from harness.runs.factory import DEFAULT, load_factory
from tests.told import Unproven, pytest_runtest_makereport, told

__all__ = ["pytest_runtest_makereport", "told"]

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
COSTLY = {
    "acceptance.distribution": 4, "acceptance.support": 2, "acceptance.independent": 2, "masks.dependency": 2,
    "acceptance.real": 4, "reuse.alternating": 5, "rules.labour": 2, "rules.length": 3, "rules.oracle": 2,
    "numbers.phi": 4, "streams.starts": 4, "rules.coin": 2, "numbers.finite": 2,
    "batch.permutation": 2, "batch.splitting": 2, "batch.padding": 2, "batch.rounds": 2,
}  # fmt: skip


@dataclass
class Count:
    """What one law saw."""

    examples: int = 0
    exercised: int = 0
    refused: int = 0
    skipped: str = ""

    def __str__(self) -> str:
        if self.skipped:
            return f"does not apply: {self.skipped}"
        share = self.exercised / max(1, self.examples)
        return f"{self.examples:5d} examples, {share:4.0%} not trivial, {self.refused} refused"


COUNTS: dict[str, Count] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--implementation", default=DEFAULT, help="decoder under test, package.module:factory")
    parser.addoption("--device", default="cpu", help="where the laws' networks live: cpu, cuda or cuda:N")
    parser.addoption("--checkout", default="", help="folder of published code, for published:NAME")
    parser.addoption("--option", action="append", default=[], help="NAME=VALUE for the factory; several times")
    parser.addoption("--patch-nums", action="append", default=[], help="a pyramid to try, 1,2,3; several times")
    parser.addoption("--dtype", default="", help="of all networks, rounding allowed for: float32")
    parser.addoption("--examples", type=int, default=0, help="cases a law, whatever the profile says")
    parser.addoption("--shrink-seconds", type=float, default=SHRINK_S, help="time to shrink a failure")


def pytest_configure(config: pytest.Config) -> None:
    try:
        load_factory(config.getoption("--implementation", DEFAULT))
        scope(config)
    except (InputError, ValueError) as error:
        raise pytest.UsageError(str(error)) from None
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def scope(config: pytest.Config) -> Scope:
    """Which cases are tried; the number of examples is the profile's unless one was given."""
    pyramids = tuple(tuple(int(side) for side in text.split(",")) for text in config.getoption("--patch-nums", []))
    examples = config.getoption("--examples", 0) or settings().max_examples
    device, dtype = config.getoption("--device", "cpu"), config.getoption("--dtype", "")
    return Scope(examples, 0, pyramids, dtype, device, config.getoption("--shrink-seconds", SHRINK_S))


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    given = [tuple(text.split("=", 1)) for text in pytestconfig.getoption("--option", [])]
    checkout = pytestconfig.getoption("--checkout", "")
    options = [("checkout", os.path.abspath(checkout))] if checkout else []
    return Subject(load_factory(pytestconfig.getoption("--implementation", DEFAULT)), (*options, *given))


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
def law_holds(subject: Subject, pytestconfig: pytest.Config, told: dict[str, str]) -> Callable[[Law], None]:
    device = pytestconfig.getoption("--device", "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        pytest.fail(f"device={device}: there is no CUDA device here; run without --device")
    return lambda law: check_law(law, subject, scope(pytestconfig), told)


def check_law(law: Law, subject: Subject, within: Scope, told: dict[str, str]) -> None:
    """Check a law in as many examples as the scope says; fail if not one of them exercised it."""
    __tracebackhide__ = True
    count = COUNTS[law.id] = Count()
    reasons: list[str] = []

    def checked(case: Case) -> None:
        __tracebackhide__ = True
        try:
            count.exercised += law.check(subject, case)
        except (NotOffered, InputError) as why:
            reasons.append(str(why))
            if isinstance(why, InputError):
                count.refused += 1
                reject()
            return
        count.examples += 1

    patience = Patience(checked, within.shrink_s)

    @settings(max_examples=max(min(4, within.examples), within.examples // COSTLY.get(law.id, 1)))
    @given(cases(st.sampled_from(within.patch_nums)) if within.patch_nums else cases())
    def holds(case: Case) -> None:
        __tracebackhide__ = True
        patience(within.fitted(case))

    with contextlib.suppress(Unsatisfiable):  # the decoder refused every case: the reason is its own
        for k in range(ROUNDS):  # all trivial by chance: draw as many more before nothing is said to be proved
            (seed(k)(holds) if k else holds)()
            if count.exercised or not count.examples:
                break
    if not count.examples:
        count.skipped = reasons[0]
        if count.refused:
            told["verdict"] = Verdict.INCONCLUSIVE.value  # it applies, and proved nothing
        pytest.skip(count.skipped)
    if count.refused > count.examples:
        raise Unproven(f"{law.id}: {count.refused} cases refused, {count.examples} decoded")
    if not count.exercised:
        raise Unproven(f"{law.id}: {count.examples} examples, and every one was trivial: nothing was tested")


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
