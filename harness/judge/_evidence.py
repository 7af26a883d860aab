"""What a judgement is made from: one decode beside the reference's, and how far rounding may set them apart."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from harness.models import ModelPair
from harness.protocol import Intermediates, Request, Trace
from harness.protocol.noise import Noise, RowsOf
from harness.reference import teacher_forced
from harness.reference.sequential import choose, sample_shown
from harness.rounding import (
    Allowance,
    Budget,
    certifying_networks,
    certifying_precision,
    images_per_certifying_pass,
)

# One scale's soft codes in float32 against float64 move f_hat by some 1e-4 where τ is small; another order of the same
# operations by as much again, elsewhere (tests/unit/judge/test_smooth.py).
SMOOTH_ROUNDING = 8


Named = tuple[str, str]  # the component that made a wrong tensor, and a clause on why


@dataclass(frozen=True)
class WrongTensor:
    """A tensor that is not the reference's, and the component that made it; `detail` is a clause on why."""

    scale: int
    component: str
    detail: str


@dataclass(frozen=True)
class Evidence:
    """One decode and its oracle."""

    models: ModelPair  # as both sides used them
    request: Request  # what was drawn
    actual: Trace  # the decoder's trace
    expected: Trace  # the reference's under the same noise; a free run until `along` replaces it
    budget: Budget  # how far rounding may move rows and f_hat in this mode
    greedy: bool = False  # both sides take the most likely token in place of a draw
    # what the draws of `expected` cost (`judge.ties.costs_of_draws`), where somebody has them already
    costs_SB3: Tensor | None = None
    # by image, scales without a target pass, which have no target tensors to check (contract C)
    unverified: tuple[frozenset[int], ...] = ()
    may_differ_from: int | None = None  # under contracts B and C the tokens of scales before this one are claimed
    is_exact: bool = False  # rounding is known not to be what is wrong
    # the request's numbers, those that the reference read; never the decoder's copy
    noise: Noise | None = field(default=None, repr=False)
    # guided logits along the decoder's tokens in the certifying precision, of the images of which a token differs
    exact_BLV: Tensor | None = field(default=None, repr=False)
    smooth_error: float = 0.0  # how far f_hat may be off besides, under `more_smooth`

    @property
    def numbers(self) -> Noise:
        """The request's numbers; drawn anew where the reference's are not at hand."""
        return self.noise or self.models.noise(self.request)

    def allowance(self, si: int) -> Allowance:
        """Return how far rounding may move this request's guided logits at one scale, and f_hat."""
        return self.budget.guided(self.request.guidance, self.models.pyramid.ramp(si), si)

    @property
    def f_hat_error(self) -> float:
        """How far f_hat may be from that of `expected`, absolute."""
        return 2 * self.budget.f_hat + self.smooth_error

    @torch.inference_mode()
    def along(self, certifies: bool = True) -> Self:
        """Return the evidence with the reference along the decoder's own tokens; itself where no token differs.

        `expected.tokens_BL` are then what the reference draws on the decoder's prefix: one tie does not cascade. Up to
        the first scale with another token the free run says it; all else of the images that differ, one pass, in the
        certifying precision, or in the networks' own where no tie is to be certified.
        """
        models, noise, shown = self.models, self.numbers, self.actual.intermediates
        if self.request.more_smooth and shown is not None:
            own, named = self.expected.shown.named(), shown.named()
            # the reference's own in the place of what is not finite, so that it spoils nothing else
            finite = {name: torch.where(each.isfinite(), each, own[name].to(each)) for name, each in named.items()}
            asked = self.request, noise, Intermediates(**finite), self.greedy
            run, exact = (sample_shown(pair.target, pair.vae, *asked) for pair in (models, models.wide()))
            moved = float((run.shown.f_hat_SBCPP - exact.shown.f_hat_SBCPP).abs().amax())
            error = SMOOTH_ROUNDING * moved
            return replace(self, expected=run, exact_BLV=exact.shown.guided_BLV, smooth_error=error, costs_SB3=None)
        differ_BL = self.actual.tokens_BL != self.expected.tokens_BL
        rows = torch.nonzero(differ_BL.any(1)).flatten()
        if not len(rows):
            return self
        pyramid, by, labels_B = models.pyramid, certifying_precision(models), noise.labels(models.target.config.classes)
        made = {name: tensor.clone() for name, tensor in self.expected.shown.named().items()}
        exact_BLV = torch.full_like(made["guided_BLV"], torch.nan, dtype=by.dtype)
        tokens_BL, f_hat_BCPP = self.expected.tokens_BL.clone(), self.expected.f_hat_BCPP.clone()
        first_B1 = torch.tensor(pyramid.draws.levels(), device=rows.device)[differ_BL.long().argmax(1), None]
        lent = certifying_networks(models, by) if certifies else nullcontext((models.target, models.vae))
        with lent as (network, vae):
            for some in rows.split(images_per_certifying_pass(models, by)):
                forced_bL, both = self.actual.tokens_BL[some], self.request.rows_of(*some.tolist())
                forced = teacher_forced(network, vae, self.request, labels_B[some], forced_bL, pyramid.S)
                exact_BLV[some] = forced.guided_BLV.to(exact_BLV)
                places = {"x_RLD": both, "rows_RLV": both, "guided_BLV": some, "f_hat_SBCPP": (slice(None), some)}
                for name, tensor in forced.named().items():
                    made[name][places[name]] = tensor.to(made[name])
                f_hat_BCPP[some] = made["f_hat_SBCPP"][-1, some]
                for si in range(int(first_B1[some].min()) + 1, pyramid.S):
                    span = pyramid.draws.span(si)
                    _, drawn_bl = choose(forced.guided_BLV[:, span], self.request, RowsOf(noise, some), si, self.greedy)
                    tokens_BL[some, span] = torch.where(first_B1[some] < si, drawn_bl, tokens_BL[some, span])
        expected = replace(
            self.expected, tokens_BL=tokens_BL, f_hat_BCPP=f_hat_BCPP, intermediates=Intermediates(**made)
        )
        return replace(self, expected=expected, costs_SB3=None, exact_BLV=exact_BLV if certifies else None)
