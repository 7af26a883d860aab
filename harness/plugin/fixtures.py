"""Fixtures for tests of one's own: the pair, the numbers, the reference, the judge, a law.

Promise: nothing is imported before a test asks for one of them. A project that has networks of its own overrides
`sdvar_pair`, and the others follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from harness.plugin._options import options_of

if TYPE_CHECKING:
    from harness import Implementation, ModelPair, Request, SeededNoise, Trace
    from harness.judge import Judgement
    from harness.laws import Law


@pytest.fixture(scope="session")
def sdvar_pair(pytestconfig: pytest.Config) -> ModelPair:
    """Return the trained digits pair that ships with the package, on the device of --sdvar-device."""
    from harness.plugin._digits import pair

    return pair(options_of(pytestconfig).scope.device)


@pytest.fixture
def sdvar_noise(sdvar_pair: ModelPair) -> Callable[[Request], SeededNoise]:
    """Return what makes the numbers of a request: fresh ones at every call, and always the same."""
    return sdvar_pair.noise


@pytest.fixture
def sdvar_reference(sdvar_pair: ModelPair) -> Callable[[Request], Trace]:
    """Return what decodes a request sequentially: the truth of contract A."""
    from harness.plugin._checking import reference

    return lambda request: reference(sdvar_pair, request)


@pytest.fixture
def sdvar_judge(sdvar_pair: ModelPair) -> Callable[..., Judgement]:
    """Return ``judge(decoder or trace, request, contract="", sequential=False)``; it fails the test at a defect."""
    from harness.plugin._checking import judged

    def judge(
        decoder_or_trace: Implementation | Trace, request: Request, contract: str = "", sequential: bool = False
    ) -> Judgement:
        __tracebackhide__ = True
        return judged(sdvar_pair, decoder_or_trace, request, contract, drafts=not sequential)

    return judge


@pytest.fixture
def sdvar_law(request: pytest.FixtureRequest) -> Callable[[Law], None]:
    """Return what checks a law over the decoder under test, for a project that lists the laws in tests of its own."""
    from harness.plugin._checking import check_law

    def check(law: Law) -> None:
        __tracebackhide__ = True
        check_law(law, options_of(request.config), request.node.stash)

    return check
