"""What pytest loads (entry point `pytest11`): options, hooks that rest until a decoder is named, and what was seen.

Promise: in a run that does not ask for it nothing happens: PyTorch is not imported, no item is added, nothing is said.
Whatever is needed beyond pytest is therefore imported in the functions. The entry point has this module's name, so that
`-p` and `pytest_plugins` find the same plugin where the package is not installed. In the process that reports, summary
and page say what all items saw; of a run that checked no law they say nothing.
"""

import inspect
import json
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from harness.plugin._options import OPTIONS, ROW, options_of
from harness.plugin.fixtures import RUNNING, needing_the_pair, sdvar_judge, sdvar_noise, sdvar_pair, sdvar_reference

if TYPE_CHECKING:
    from harness.report import CheckRow

__all__ = ["sdvar_judge", "sdvar_noise", "sdvar_pair", "sdvar_reference"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; every one begins with --sdvar."""
    from harness.numerals import real, whole

    add = parser.getgroup("sdvar", "speculative decoding of VAR image models (sdvar-harness)").addoption
    decoder = "decoder under test, package.module:factory: its laws and a verification on digits become test items"
    add("--sdvar-implementation", default="", metavar="NAME", help=decoder)
    known = 'TOML file of "law or case" = "reason": these must fail, and a pass is a failure'
    add("--sdvar-known-failures", default="", metavar="FILE", help=known)
    add("--sdvar-report", default="", metavar="FILE", help="write what the laws saw as one HTML page")
    add("--sdvar-examples", type=whole, metavar="N", help="cases a law [20]; costly laws try a share")
    add("--sdvar-seed", type=whole, metavar="N", help="of the cases [0]: the same ones at every run")
    add("--sdvar-shrink-seconds", type=real, default=60.0, metavar="S", help="time to shrink a failure [60]")
    add("--sdvar-patch-nums", action="append", default=[], metavar="1,2,3", help="a pyramid to try; several times")
    add("--sdvar-dtype", default="", help="of all networks of the laws, rounding allowed for: float32")
    add("--sdvar-device", default="cpu", help="where networks live: cpu, cuda or cuda:N [cpu]")
    add("--sdvar-checkout", default="", metavar="DIR", help="folder of published code, for published:NAME")
    add("--sdvar-option", action="append", default=[], metavar="NAME=VALUE", help="for the factory; several times")
    add("--sdvar-stub", action="append", default=[], metavar="NAME=FILE", help="in place of a module of the checkout's")
    add("--sdvar-cover", action="store_true", help="verify digits with the whole covering design, not a few settings")
    add("--sdvar-sequential", action="store_true", help="the decoder drafts nothing, and need not")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse bad options before anything is collected; take what was seen in the process that reports it."""
    option = config.option
    if option.sdvar_implementation or option.sdvar_known_failures or option.sdvar_report:
        options_of(config)
    if not hasattr(config, "workerinput"):  # under pytest-xdist the reports come from the workers
        config.pluginmanager.register(Gathered(config), "sdvar-seen")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is under test."""
    return [f"sdvar: {options_of(config)}"] if config.option.sdvar_implementation else []


def pytest_pycollect_makeitem(obj: object) -> None:
    """Let tests that take a fixture of the plugin take the pair, too."""
    if inspect.isfunction(obj) or inspect.ismethod(obj):
        needing_the_pair(obj)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Know which test runs: fixtures of the session look up what is its own."""
    item.config.stash[RUNNING] = item
    return (yield)


@pytest.hookimpl(tryfirst=True)  # before -k and --deselect look at the items
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the items where a decoder is named, and mark those that are known to fail."""
    if config.option.sdvar_implementation:
        from harness.plugin._items import Suite

        suite = Suite.of(session, options_of(config))
        items += session.genitems(suite)  # counted and reported as pytest's own are
    if OPTIONS in config.stash:
        from harness.plugin._items import mark_known

        mark_known(items, options_of(config).known)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put verdict, component and replay of a law or case into its report, and what it saw."""
    report = yield
    if OPTIONS in item.config.stash:
        from harness.plugin._items import CheckItem, add_properties

        if isinstance(item, CheckItem):
            add_properties(item, call, report, item.component, item.replay)
    return report


class Gathered:
    """Collects the rows of reports, wherever the items ran."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.rows: dict[str, CheckRow] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a row."""
        text = getattr(report, ROW, None)
        if text is not None:
            from harness.report import CheckRow
            from harness.schema import record_of

            row = record_of(CheckRow, json.loads(text))
            self.rows[row.id] = row

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line a law or case: how much was tried, and how much of it was not trivial."""
        if self.rows:
            from harness.report import check_line

            terminalreporter.section("laws")
            for _, row in sorted(self.rows.items()):
                terminalreporter.write_line(check_line(row))
            examples = [row.examples for row in self.rows.values() if row.kind == "law"]
            terminalreporter.write_line(f"{'all':28s} {sum(examples):5d} examples of {len(examples)} laws")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the page."""
        options = self.config.stash.get(OPTIONS, None)
        if options is None or options.report is None:
            return
        from harness.files import write_whole
        from harness.report.html import laws_page

        write_whole(options.report, laws_page(list(self.rows.values()), options.name, options.scope))
