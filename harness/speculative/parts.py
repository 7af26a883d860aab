"""The decoder's replaceable parts.

Promise: the production decoder is the composition of exactly these functions. A law tests each alone; a planted bug
replaces one (`dataclasses.replace(PARTS, attention_mask=wrong)`) and leaves the rest untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.speculative import cache, draw, guidance, latent, masks, query, rejection, state

Part = Callable[..., Any]


@dataclass(frozen=True)
class Parts:
    """One function a part; the function of the same name states its contract."""

    build_combined_query: Part = query.build_combined_query
    attention_mask: Part = masks.attention_mask
    guide: Part = guidance.guide
    split_logits_by_scale: Part = guidance.split_logits_by_scale
    filter_logits: Part = draw.filter_logits
    draw: Part = draw.draw
    keep_drafted: Part = rejection.keep_drafted
    residual: Part = rejection.residual
    accumulate: Part = latent.accumulate
    next_input: Part = latent.next_input
    update_state_with_accepted_tokens: Part = state.update_state_with_accepted_tokens
    new_cache: Part = cache.KVCache


PARTS = Parts()
