"""The decoder's replaceable parts, and which of them every family of networks has.

Promise: the decoder calls these functions through its `Parts` and nowhere by their own names, so replacing one
(`dataclasses.replace(PARTS, attention_mask=wrong)`) plants a bug there and leaves the rest untouched; mypy refuses a
function of another shape. What is no part (rounds, passes, acceptance rules, the networks' own functions) is replaced
elsewhere: a policy, a pair of models. A family is one row of `FAMILIES`, its functions one module here; nobody else
asks which family it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.models.network import Condition, Network
from harness.protocol import Request, ScalePyramid
from harness.speculative import _infinity as infinity
from harness.speculative import _state as state
from harness.speculative import _steps as steps
from harness.speculative import _var as var
from harness.speculative import rejection


@dataclass(frozen=True)
class Parts:
    """One function a part; the function of that name states its contract (`steps`, `var`, `state`, `state.KVCache`)."""

    condition_rows: Callable[[Network, Request, Tensor], Condition] = var.condition_rows
    build_combined_query: Callable[[Network, Condition, Tensor, int, int], Tensor] = var.build_combined_query
    # where the rows of scales first..last sit, for `Network.hidden`: the same tensor each time, or None (`Network`)
    positions: Callable[[Network, int, int], Tensor | None] = var.positions
    attention_mask: Callable[[ScalePyramid, int, int, torch.device, torch.dtype], Tensor] = steps.attention_mask
    guide: Callable[[Tensor, ScalePyramid, Any, int, int], Tensor] = var.guide  # takes `Request.guidance`
    split_logits_by_scale: Callable[[Tensor, ScalePyramid, int, int], list[Tensor]] = steps.split_logits_by_scale
    filter_logits: Callable[[Tensor, int, float], Tensor] = steps.filter_logits
    draw: Callable[[Tensor, Tensor], Tensor] = steps.draw
    keep_drafted: Callable[[Tensor, Tensor, Tensor], Tensor] = rejection.keep_drafted
    residual: Callable[[Tensor, Tensor], Tensor] = rejection.residual
    accumulate: Callable[[Tensor, Tensor, int, Any, ScalePyramid], Tensor] = var.accumulate
    next_input: Callable[[Tensor, int, ScalePyramid], Tensor] = var.next_input
    update_state_with_accepted_tokens: Callable[
        [state.DecodeState, Parts, list[int], int, list[Tensor], list[int]], None
    ] = state.update_state_with_accepted_tokens
    new_cache: state.NewCache = state.KVCache


PARTS = Parts()
INFINITY = replace(
    PARTS, condition_rows=infinity.condition_rows, build_combined_query=infinity.build_combined_query,
    positions=infinity.positions, guide=infinity.guide, accumulate=infinity.accumulate,
    next_input=infinity.next_input,
)  # fmt: skip
FAMILIES = {"var": PARTS, "infinity": INFINITY}


def parts_of(network: Network) -> Parts:
    """Return the parts of a network's family. Raises `InputError` for a family that nobody wrote."""
    name = network.config.family
    if name not in FAMILIES:
        raise InputError("family", name, f"must be one of {', '.join(FAMILIES)}", "pass networks of one of these")
    return FAMILIES[name]
