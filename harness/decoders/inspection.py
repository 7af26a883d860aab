"""The parts of a decoder under test, asked one by one where the decoder lives.

Promise: the budget that they are judged by is fixed before the decoder is built; a process that dies is one row.
"""

from __future__ import annotations

from harness.adapters.parallel import Parallel
from harness.adapters.parts import examine
from harness.adapters.probe import CRASHED, PartLaw
from harness.adapters.published import Sampler
from harness.errors import InputError
from harness.protocol.decoder import Implementation
from harness.protocol.request import Request
from harness.rounding.budget import Budget


def inspect(decoder: Implementation, request: Request, budget: Budget) -> list[PartLaw]:
    """Ask every law of every part of a decoder that is made of published code.

    Raises:
        InputError: it is not.
    """
    if not isinstance(decoder, Sampler | Parallel):
        rule = "is no decoder of published code, whose parts have the report's names"
        raise InputError(
            "implementation", type(decoder).__name__, rule, "pass --implementation published:sdvar-parallel"
        )
    loop = isinstance(decoder, Parallel)
    return examine(decoder.code, decoder.sdvar, request, budget, loop, decoder.threshold)


def died(why: str) -> PartLaw:
    """Return the row of a process that gave no answer."""
    return PartLaw("process", "process.ends", "The decoder's process answers.", CRASHED, why)
