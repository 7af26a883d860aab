"""Fixtures for tests of one's own: the pair, the numbers, the reference, the judge.

Promise: nothing is imported before a test asks for one of them. A project that has networks of its own overrides
`sdvar_pair`, in any scope, and the others follow: they look for it when they are called, so that they live as long as
the session, and Hypothesis, which calls a test many times, has nothing against them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from harness.plugin._options import options_of

if TYPE_CHECKING:
    from harness import Implementation, ModelPair, Request, SeededNoise, Trace
    from harness.judge import Judgement

RUNNING = pytest.StashKey[pytest.Item]()  # of the config: the test that runs


@pytest.fixture(scope="session")
def sdvar_pair(pytestconfig: pytest.Config) -> ModelPair:
    """Return the trained digits pair that ships with the package, on the device of --sdvar-device."""
    from harness.plugin._digits import pair

    return pair(options_of(pytestconfig).scope.device)


@pytest.fixture(scope="session")
def sdvar_noise(pytestconfig: pytest.Config) -> Callable[[Request], SeededNoise]:
    """Return what makes the numbers of a request: fresh ones at every call, and always the same."""
    return lambda request: _pair_of(pytestconfig).noise(request)


@pytest.fixture(scope="session")
def sdvar_reference(pytestconfig: pytest.Config) -> Callable[[Request], Trace]:
    """Return what decodes a request sequentially: the truth of contract A."""
    from harness.plugin._checking import reference

    return lambda request: reference(_pair_of(pytestconfig), request)


@pytest.fixture(scope="session")
def sdvar_judge(pytestconfig: pytest.Config) -> Callable[..., Judgement]:
    """Return ``judge(decoder or trace, request, contract="", sequential=False)``; it fails the test at a defect."""
    from harness.plugin._checking import judged

    def judge(
        decoder_or_trace: Implementation | Trace, request: Request, contract: str = "", sequential: bool = False
    ) -> Judgement:
        __tracebackhide__ = True
        return judged(_pair_of(pytestconfig), decoder_or_trace, request, contract, drafts=not sequential)

    return judge


def needing_the_pair(function: Callable[..., object]) -> None:
    """Let a test that takes one of these fixtures take the pair, too, of whatever scope and parameters that is."""
    plain = getattr(function, "__func__", function)  # of a method
    try:
        names = inspect.signature(plain).parameters
    except (TypeError, ValueError):  # whatever else has a test's name
        return
    if {"sdvar_noise", "sdvar_reference", "sdvar_judge"} & names.keys():
        pytest.mark.usefixtures("sdvar_pair")(plain)


def _pair_of(config: pytest.Config) -> ModelPair:
    item: Any = config.stash[RUNNING]
    pair: ModelPair = item._request.getfixturevalue("sdvar_pair")
    return pair
