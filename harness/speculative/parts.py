"""The decoder's replaceable parts.

Promise: the decoder calls these functions through its `Parts` and nowhere by their own names, so replacing one
(`dataclasses.replace(PARTS, attention_mask=wrong)`) plants a bug there and leaves the rest untouched; mypy refuses a
function of another shape. What is no part (rounds, passes, acceptance rules, the networks' own functions) is replaced
elsewhere: a policy, a pair of models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.models.network import Condition, Network
from harness.models.var.quantizer import Quantizer
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import _cache as cache
from harness.speculative import _state as state
from harness.speculative import _steps as steps
from harness.speculative import rejection


@dataclass(frozen=True)
class Parts:
    """One function a part; the function of the same name states its contract (`steps`, `state`; `cache.KVCache`)."""

    build_combined_query: Callable[[Network, Condition, Tensor, int, int], Tensor] = steps.build_combined_query
    attention_mask: Callable[[ScalePyramid, int, int, torch.device, torch.dtype], Tensor] = steps.attention_mask
    guide: Callable[[Tensor, ScalePyramid, float, int, int], Tensor] = steps.guide
    split_logits_by_scale: Callable[[Tensor, ScalePyramid, int, int], list[Tensor]] = steps.split_logits_by_scale
    filter_logits: Callable[[Tensor, int, float], Tensor] = steps.filter_logits
    draw: Callable[[Tensor, Tensor], Tensor] = steps.draw
    keep_drafted: Callable[[Tensor, Tensor, Tensor], Tensor] = rejection.keep_drafted
    residual: Callable[[Tensor, Tensor], Tensor] = rejection.residual
    accumulate: Callable[[Tensor, Tensor, int, Quantizer, ScalePyramid], Tensor] = steps.accumulate
    next_input: Callable[[Tensor, int, ScalePyramid], Tensor] = steps.next_input
    update_state_with_accepted_tokens: Callable[
        [state.DecodeState, Parts, list[int], int, list[Tensor], list[int]], None
    ] = state.update_state_with_accepted_tokens
    new_cache: Callable[[Network, int], cache.KVCache] = cache.KVCache


PARTS = Parts()
