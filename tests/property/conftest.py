"""The laws by family, as tests of this project: the plugin's options by their short names, and profiles."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from harness.laws import Law
from harness.plugin._checking import check_law
from harness.plugin._items import CheckItem
from harness.plugin._options import options_of
from harness.pool import one_thread
from tests.reported import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]

# print_blob and the case in the message: a failure prints what replays it. No deadline: a shared machine is slow at
# times. No database: a run depends on its seed alone (--hypothesis-seed). No explanations: a failure fits one screen.
common = {
    "deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck), "database": None,
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
}  # fmt: skip
settings.register_profile("dev", max_examples=12, **common)
settings.register_profile("ci", max_examples=40, **common)
settings.register_profile("deep", max_examples=1500, **common)
SHORT = ("implementation", "device", "checkout", "patch-nums", "dtype", "option")
SEVERAL = ("patch-nums", "option")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name in SHORT:
        action, default = ("append", []) if name in SEVERAL else ("store", "cpu" if name == "device" else "")
        parser.addoption(f"--{name}", dest=f"sdvar_{name.replace('-', '_')}", action=action, default=default)
    parser.addoption("--examples", dest="sdvar_examples", type=int, help="cases a law, whatever the profile says")
    parser.addoption("--shrink-seconds", dest="sdvar_shrink_seconds", type=float, default=60.0)


def pytest_configure(config: pytest.Config) -> None:
    """Take the number of cases from the profile, and new ones every time unless a seed is given."""
    option = config.option
    settings.load_profile(config.getoption("--hypothesis-profile", None) or os.environ.get("HYPOTHESIS_PROFILE", "ci"))
    if option.sdvar_examples is None:
        option.sdvar_examples = settings().max_examples
    if option.sdvar_seed is None:
        given = str(config.getoption("--hypothesis-seed", None))
        option.sdvar_seed = int(given) if given.isdecimal() else secrets.randbelow(2**31)


@pytest.fixture(autouse=True)
def global_generator_untouched() -> Iterator[None]:
    """Nothing may depend on, or move, the global generator: so a failure replays from its case alone."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with one_thread():
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the plugin's items: the laws have tests of their own here."""
    items[:] = [item for item in items if not isinstance(item, CheckItem)]


@pytest.fixture
def law_holds(request: pytest.FixtureRequest, pytestconfig: pytest.Config):
    device = pytestconfig.getoption("--sdvar-device")
    if device != "cpu" and not torch.cuda.is_available():
        pytest.fail(f"device={device}: there is no CUDA device here; run without --device")

    def check(law: Law) -> None:
        __tracebackhide__ = True
        check_law(law, options_of(pytestconfig), request.node.stash)

    return check
