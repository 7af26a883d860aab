"""The records between drafting and updating: window, proposal, acceptance and the shape of a policy.

Promise: judged per image and per scale, never averaged over the batch. The coupling of draft and target and the
acceptance rule are one choice, so a policy is one object with its contract; `policies.parse` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.protocol.contract import Contract
from harness.protocol.noise import Noise
from harness.protocol.pyramid import ScalePyramid
from harness.speculative.parts import Parts
from harness.speculative.state import pick


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

    @property
    def span(self) -> slice:
        """Positions of the window."""
        return slice(self.pyramid.begin(self.first), self.pyramid.end(self.last))

    def pick(self, x_BX: Tensor) -> Tensor:
        """Return the rows of the window's images."""
        return pick(x_BX, self.images)

    def exponential(self, stream: str) -> Tensor:
        """Return E_bnV of the window's positions in order. Effects: entries in the ledger."""
        return torch.cat([self.pick(self.noise.exponential(si, stream, self.reader)) for si in self.scales], 1)

    def uniform(self, stream: str) -> Tensor:
        """Return u_bn of the window's positions in order. Effects: entries in the ledger."""
        return torch.cat([self.pick(self.noise.uniform(si, stream, self.reader)) for si in self.scales], 1)

    def read_as(self, reader: str) -> Window:
        """Return the same window for another consumer of numbers."""
        return replace(self, reader=reader)

    def split(self, x_bnX: Tensor) -> tuple[Tensor, ...]:
        """Return x_blX of every scale."""
        by_scale: tuple[Tensor, ...] = x_bnX.split([self.pyramid.tokens(si) for si in self.scales], 1)
        return by_scale

    def whole(self, kept_bn: Tensor) -> Tensor:
        """Return whole_bs: True where every token of a scale is kept."""
        return torch.stack([kept_bl.all(1) for kept_bl in self.split(kept_bn)], 1)


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

    def tokens_by_scale(self, proposal: Proposal, window: Window) -> list[Tensor]:
        """Return tokens_bl of every scale: the drafted ones where it stands, else what it becomes."""
        scales = zip(
            self.whole_bs.unbind(1), window.split(proposal.tokens_bn), window.split(self.tokens_bn), strict=True
        )
        return [torch.where(whole_b[:, None], drafted_bl, else_bl) for whole_b, drafted_bl, else_bl in scales]


@dataclass(frozen=True)
class Policy:
    """A coupling and its acceptance rule.

    Args:
        name: as on the command line.
        contract: what the policy claims (design §1).
        propose: draws the draft's tokens of a window from its law.
        accept: judges a proposal under the target's law.
        extend: draws the target's tokens of a scale that was not drafted (the bonus scale).
        greedy: the oracle is the reference with argmax in place of the draw.
        trusted: half-open range of scales whose drafted tokens are final without a target pass.
        speculates: the other scales are drafted and verified; False: the target decides them alone, one a pass.
        entry: scale at which the labour changes hands; at most S.
        top: smallest V that the policy needs.
        reason: why it claims this contract and no other.
    """

    name: str
    contract: Contract
    propose: Callable[[Parts, Tensor, Window], Tensor]
    accept: Callable[[Parts, Proposal, Tensor, Window], Acceptance]
    extend: Callable[[Parts, Tensor, Window], Tensor]
    greedy: bool = False
    trusted: tuple[int, int] = (0, 0)
    speculates: bool = True
    entry: int = 0
    top: int = 1
    reason: str = ""

    def trusts(self, si: int) -> bool:
        """Tell whether the draft decides scale `si` alone."""
        return self.trusted[0] <= si < self.trusted[1]

    def reach(self, first: int, count: int, S: int) -> int:
        """Return how many scales a round drafts that begins at `first` and wants `count`.

        A round never crosses from scales that the target decides to scales that the draft decides alone, or back;
        those that it decides alone are drafted all at once. None is drafted where the target decides alone.
        """
        alone = self.trusts(first)
        if not (alone or self.speculates):
            return 0
        stop = next((si for si in range(first, S) if self.trusts(si) != alone), S)
        return stop - first if alone else min(count, stop - first)
