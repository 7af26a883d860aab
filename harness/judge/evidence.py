"""What a judgement is made from: one decode beside the reference's, and how far rounding may part them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.models.pair import ModelPair
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.reference import sequential
from harness.rounding.budget import Allowance, Budget

Costs = Sequence[list[float]]  # by scale, by θ


@dataclass(frozen=True)
class Evidence:
    """One decode and its oracle.

    Args:
        models: as both sides used them.
        request: what was drawn.
        actual: the decoder's trace.
        expected: the reference's under the same noise; a free run until `along` replaces it.
        budget: how far rounding may move rows and f_hat in this mode.
        greedy: both sides take the most likely token in place of a draw.
        costs: what the draws of `expected` cost, by scale (`judge.tokens.costs_of`), where somebody has them already.
        unverified: by image, scales without a target pass, which have no target tensors to check (contract C).
    """

    models: ModelPair
    request: Request
    actual: Trace
    expected: Trace
    budget: Budget
    greedy: bool = False
    costs: Costs = ()
    unverified: tuple[frozenset[int], ...] = ()

    def allowance(self, si: int) -> Allowance:
        """Return how far rounding may move this request's guided logits at one scale, and f_hat."""
        return self.budget.guided(self.request.cfg, self.models.pyramid.ramp(si))

    def along(self) -> Evidence:
        """Return the evidence with the reference run along the decoder's own tokens.

        `expected.tokens_BL` are then what the reference draws on the decoder's prefix: one tie does not cascade.
        """
        models, request = self.models, self.request
        forced_BL = self.actual.tokens_BL
        run = sequential.sample(models.target, models.vae, request, models.noise(request), forced_BL, self.greedy)
        return replace(self, expected=run, costs=())
