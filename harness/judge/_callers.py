"""From the operation that made a wrong value of right ones up to the line that called for it.

Promise: a line up the stack is named only for what was seen there: a number or a label that is not the request's.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.judge._recorder import Operation
from harness.protocol import Request

NUMBERS = ("cfg", "top_k", "top_p", "seed")
LISTS = ("labels", "image_ids")  # of which a part may be asked for


def numbers_asked(request: Request, ramps: Sequence[float]) -> dict[str, list[float]]:
    """Return the numbers that functions may be given, by the name of a parameter; `ramps` are the scales' shares.

    A filter that is off, and a share of the guidance value, are asked for by steps of their own.
    """
    filters = [request.filter(si) for si in range(len(ramps))]
    return {
        "cfg": [request.cfg, *(request.cfg * ramp for ramp in ramps)],
        "top_k": [0, *(top_k for top_k, _ in filters)],
        "top_p": [0, *(top_p for _, top_p in filters)],
        "seed": [request.seed, *(request.seeds or ())],
    }


def given_otherwise(
    values: Mapping[str, Any], request: Request, asked: Mapping[str, Sequence[float]]
) -> tuple[str, bool]:
    """Return what a function's variables hold otherwise than is asked for, and whether one holds that."""
    words, is_right = "", False
    for name, value in values.items():
        if isinstance(value, Request):
            others = [each for each in (*NUMBERS, "filters") if getattr(value, each) != getattr(request, each)]
            others += [each for each in LISTS if Counter(getattr(value, each)) - Counter(getattr(request, each))]
            said = ", ".join(
                f"{each}={getattr(value, each)}" for each in others if each != "seed" or value.seed not in asked[each]
            )
        elif name in asked and isinstance(value, int | float):
            is_asked = value in asked[name] or any(
                math.isclose(value, each) for each in asked[name] if isinstance(value, float)
            )
            said = "" if is_asked else f"{name}={value}"
        else:
            continue
        words, is_right = words or said, is_right or not said
    return words, is_right


def caller_of(step: Operation) -> tuple[Operation, str] | None:
    """Return an operation seen from the line that gave other numbers than are asked for; None where none did."""
    wrong = [at for at, (words, _) in enumerate(step.given) if words]
    if not wrong:
        return None
    words, is_right = step.given[wrong[-1]]
    at = wrong[-1] + (not is_right and wrong[-1] + 1 < len(step.stack))
    inner, why = step.stack[0], f", with {words}"
    why += f", computed at {Path(inner.file).name}:{inner.line}" if at else ""
    return step._replace(stack=step.stack[at:], given=step.given[at:]), why
