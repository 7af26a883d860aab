"""One network of a pair as it walks along the scales, plain: its conditions, and a cache of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.models.network import Condition, Network
from harness.reference.sequential import GrowingCache, guidance_labels, scale_input


@dataclass(frozen=True)
class Walk:
    """One network with the conditions of its rows.

    Args:
        network: draft or target.
        condition: of 2B guidance rows.
        cache: grows by what passes.
    """

    network: Network
    condition: Condition
    cache: GrowingCache

    @classmethod
    def begin(cls, network: Network, labels_B: Tensor) -> Walk:
        """Return a walk that has not begun, for these labels."""
        condition = network.condition(guidance_labels(labels_B, network.config.classes))
        return cls(network, condition, GrowingCache())

    def input(self, raw_BlC: Tensor | None, si: int) -> Tensor:
        """Return x_RlD of scale `si`; no raw input at scale 0."""
        return scale_input(self.network, self.condition, raw_BlC, si)

    def rows(self, x_RlD: Tensor) -> Tensor:
        """Return logits_RlV of one scale that sees its cache and all of itself. Effects: the cache grows."""
        return self.network.logits(self.network.hidden(x_RlD, self.condition, self.cache, None), self.condition)
