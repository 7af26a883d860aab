"""The parts of a checkout, one by one: which laws each keeps, and what is wrong with its numbers.

Promise: the whole decode is not needed; a part that crashes is one row.
"""

from __future__ import annotations

from typing import Any

from harness.adapters.parts_network import examine_masks, examine_network
from harness.adapters.parts_sdvar import examine_sdvar
from harness.adapters.probe import PartLaw, Probe
from harness.adapters.published import Published
from harness.protocol.request import Request
from harness.rounding.budget import Budget


def examine(
    code: Published, sdvar: Any, request: Request, budget: Budget, loop: bool = True, threshold: float | None = None
) -> list[PartLaw]:
    """Ask every law of every part.

    Args:
        code: the checkout's modules.
        sdvar: its SDVAR object; None where it has none.
        request: labels and guidance of what the parts are asked.
        budget: how far rounding may move a number, measured before the code was built.
        loop: ask the methods of the parallel decode, too.
        threshold: `similarity_thresh` that the object was built with; None: its own default.

    Returns:
        A row a law, in the order of the report.
    """
    probe = Probe.of(code, request, budget)
    probe.threshold = threshold
    if sdvar is not None:
        if loop:
            examine_sdvar(probe, sdvar)
        examine_masks(probe, sdvar)
    examine_network(probe)
    return probe.rows
