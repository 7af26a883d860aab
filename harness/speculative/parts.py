"""The decoder's replaceable parts.

Promise: the decoder calls these functions through its `Parts` and nowhere by their own names, so replacing one
(`dataclasses.replace(PARTS, attention_mask=wrong)`) plants a bug there and leaves the rest untouched. What is no part
(rounds, passes, acceptance rules, the networks' own functions) is replaced elsewhere: a policy, a pair of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harness.speculative import cache, draw, guidance, latent, masks, query, rejection, signatures, update
from harness.speculative.state import DecodeState


class UpdateState(Protocol):
    """(state, parts, images, first, final tokens (b,l) by scale, scales to finish by image): changes the state."""

    def __call__(  # noqa: D102
        self,
        state: DecodeState,
        parts: Parts,
        images: list[int],
        first: int,
        tokens_by_scale: list[Tensor],
        finished: list[int],
        /,
    ) -> None: ...


@dataclass(frozen=True)
class Parts:
    """One function a part; the function of the same name states its contract."""

    build_combined_query: signatures.BuildCombinedQuery = query.build_combined_query
    attention_mask: signatures.AttentionMask = masks.attention_mask
    guide: signatures.Guide = guidance.guide
    split_logits_by_scale: signatures.SplitLogitsByScale = guidance.split_logits_by_scale
    filter_logits: signatures.FilterLogits = draw.filter_logits
    draw: signatures.Draw = draw.draw
    keep_drafted: signatures.KeepDrafted = rejection.keep_drafted
    residual: signatures.Residual = rejection.residual
    accumulate: signatures.Accumulate = latent.accumulate
    next_input: signatures.NextInput = latent.next_input
    update_state_with_accepted_tokens: UpdateState = update.update_state_with_accepted_tokens
    new_cache: signatures.NewCache = cache.KVCache


PARTS = Parts()
