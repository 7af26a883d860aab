"""Acceptance policies: how the draft draws, which drafted tokens stand, and what replaces the others.

Promise: decided per image and per scale, never averaged over the batch; pure functions of tensors and numbers. The
coupling of draft and target and the acceptance rule are one choice, so a policy is one object with its contract.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.noise import TOKEN, Noise
from harness.pyramid import ScalePyramid
from harness.speculative.state import pick

if TYPE_CHECKING:
    from harness.speculative.parts import Parts


@dataclass(frozen=True)
class Window:
    """Scales first..last of one group of images, and the numbers that `reader` may read there."""

    noise: Noise
    pyramid: ScalePyramid
    images: list[int]
    first: int
    last: int
    reader: str

    @property
    def scales(self) -> range:
        """Scale indices of the window."""
        return range(self.first, self.last + 1)

    def exponential(self, stream: str) -> Tensor:
        """Return E_bnV of the window's positions in order. Effects: entries in the ledger."""
        return torch.cat([pick(self.noise.exponential(si, stream, self.reader), self.images) for si in self.scales], 1)

    def whole(self, kept_bn: Tensor) -> Tensor:
        """Return whole_bs: True where every token of a scale is kept."""
        sizes = [self.pyramid.tokens(si) for si in self.scales]
        return torch.stack([kept_bl.all(1) for kept_bl in kept_bn.split(sizes, 1)], 1)


@dataclass(frozen=True)
class Proposal:
    """What the draft proposes for a window: tokens_bn, and probs_bnV, the law that they were drawn from."""

    tokens_bn: Tensor
    probs_bnV: Tensor


@dataclass(frozen=True)
class Acceptance:
    """The judgement on one window of drafted scales.

    Args:
        tokens_bn: what a scale's tokens become where it is the first imperfect one.
        kept_bn: True where the drafted token stands.
        whole_bs: True where the scale stands as drafted.
    """

    tokens_bn: Tensor
    kept_bn: Tensor
    whole_bs: Tensor


@dataclass(frozen=True)
class Policy:
    """A coupling and its acceptance rule.

    Args:
        name: as on the command line.
        contract: what the policy claims (design §1).
        propose: draws the draft's tokens of a window from its law.
        accept: judges a proposal under the target's law.
        extend: draws the target's tokens of a scale that was not drafted (bonus, or no draft at all).
    """

    name: str
    contract: str
    propose: Callable[[Parts, Tensor, Window], Tensor]
    accept: Callable[[Parts, Proposal, Tensor, Window], Acceptance]
    extend: Callable[[Parts, Tensor, Window], Tensor]


def race(parts: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
    """Draw tokens_bn under the shared numbers. Reads stream TOKEN."""
    tokens_bn: Tensor = parts.draw(probs_bnV, window.exponential(TOKEN))
    return tokens_bn


def accept_coupled(parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window) -> Acceptance:
    """Contract A: a drafted token stands iff it is the target's own draw under the same numbers (design §1)."""
    tokens_bn = race(parts, target_probs_bnV, window)
    kept_bn = tokens_bn == proposal.tokens_bn
    return Acceptance(tokens_bn, kept_bn, window.whole(kept_bn))


COUPLED = Policy("coupled", "token-identical", race, accept_coupled, race)
