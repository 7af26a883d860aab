"""Whether tokens follow the target's law (contract B): bets against its likelihood, image by image.

Promise: a decoder whose tokens are drawn from the target's law, by logits that rounding may have moved by all that the
budget allows, is accused with probability at most α, however many images are looked at and whenever one stops. The
alternatives, their weights and α are fixed before the first image.

How: one pass of the target along the decoder's own tokens gives the law p of every draw. An alternative law a bets on
it: its wealth is multiplied by a(x)/p(x) for every token x that is met. Where x is drawn from p the expected factor is
1, so the wealth exceeds 1/α with probability at most α (Ville's inequality for a nonnegative martingale). A mixture of
such wealths with fixed weights is another one. Three things keep a right decoder from losing to anything but chance:

- its own law q may be any within rounding of p. With g = q/p between exp(−4δ) and exp(4δ), the expected factor is
  Σ p·g·r ≤ m + (exp(4δ) − 1)·A + (1 − exp(−4δ))·(A − m + 1), where r = a/p, m = Σ p·r and A = Σ p·max(r − 1, 0).
  Every factor is divided by this bound. δ is the budget's bound of a logit: the decoder's moved by δ, so did ours, and
  a softmax moves by twice what its logits do.
- near the edge of a filter rounding decides which tokens take part: nothing is bet there.
- a draw from float32 numbers follows its law up to DRAW_ROUNDING in total variation, so that no factor may exceed
  MOST_RATIO: the bound grows by the product of the two.

What a bet would win of a decoder that follows its alternative is known, too (the same sums, under a): from it follows
how many images find such a decoder.

Source: Shafer, "Testing by betting", Journal of the Royal Statistical Society A 184 (2021); Ville (1939).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from harness.judge._alternatives import Alternative, TokenSource, usual_alternatives
from harness.judge._evidence import Evidence
from harness.judge._race import filter_survivors
from harness.judge._verdict import Divergence, Judgement
from harness.judge._wealth import Bets, Wealth
from harness.models import ModelPair
from harness.models.network import Network
from harness.protocol import Request
from harness.protocol.pyramid import ScalePyramid
from harness.reference import FamilySteps, family_of, filter_logits, teacher_forced
from harness.rounding import Budget

DRAW_ROUNDING = 2.0**-18  # of a draw from float32 numbers, total variation, and of a ratio of float32 probabilities
TINY = 1e-37  # below any probability that float32 numbers draw
LEAST = -80.0  # of the logarithm of a factor: a loss that is called smaller adds exp(-80) to what is expected
MOST_RATIO = 64.0
CHUNK = 2**18  # numbers of the alternatives in hand at once: what a cache holds


def allowed_by(budget: Budget, models: ModelPair, request: Request) -> tuple[float, ...]:
    """Return how far rounding may move a request's guided logits, by scale."""
    return tuple(budget.guided(request.guidance, models.pyramid.ramp(si), si).logits for si in models.pyramid)


@dataclass(frozen=True)
class TokensSeen:
    """Tokens of a batch, and the target's logits along them."""

    request: Request  # what the tokens should be drawn by
    tokens_BL: Tensor
    rows_RLV: Tensor  # before guidance
    guided_BLV: Tensor  # before the filter
    draft_RLV: Tensor  # the draft's rows along the same tokens
    allowed_S: tuple[float, ...]  # how far rounding may move a guided logit, by scale
    steps: FamilySteps  # what is done with the networks
    before_L: Tensor | None = None  # tokens of the image before the first one, if any

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        """Take them from a judgement's evidence; `evidence.expected` is along the decoder's own tokens."""
        models, request, tokens_BL = evidence.models, evidence.request, evidence.actual.tokens_BL
        shown, labels_B = evidence.expected.shown, evidence.numbers.labels(models.target.config.classes)
        draft_RLV = rows_along(models.draft, models, request, labels_B, tokens_BL)[0]
        allowed_S = allowed_by(evidence.budget, models, request)
        return cls(request, tokens_BL, shown.rows_RLV, shown.guided_BLV, draft_RLV, allowed_S, family_of(models.target))

    @classmethod
    def along(
        cls, models: ModelPair, budget: Budget, request: Request, tokens_BL: Tensor, before_L: Tensor | None = None
    ) -> Self:
        """Ask both networks along the tokens of a request with labels; `before_L` is the image before the first one."""
        labels_B = torch.tensor(request.labels, device=models.device)
        rows_RLV, guided_BLV = rows_along(models.target, models, request, labels_B, tokens_BL)
        draft_RLV = rows_along(models.draft, models, request, labels_B, tokens_BL)[0]
        allowed_S, steps = allowed_by(budget, models, request), family_of(models.target)
        return cls(request, tokens_BL, rows_RLV, guided_BLV, draft_RLV, allowed_S, steps, before_L)


def bet_on(evidence: Evidence, judgement: Judgement) -> None:
    """Bet on a decode of contract B. Effects: on `judgement`: what `weigh_law` adds up."""
    alternatives = usual_alternatives(evidence.request, evidence.models.target.config.V)
    bets = bet(TokensSeen.of(evidence), evidence.models.pyramid, alternatives)
    judgement.won, judgement.under = bets.won_BAS.tolist(), [bets.mean_A.tolist(), bets.variance_A.tolist()]


def law_of(request: Request) -> Hashable:
    """Return what a request's law depends on besides its conditions: bets under different ones are not added up."""
    return request.guidance, request.top_k, request.top_p, request.filters


def weigh_law(judgements: Sequence[tuple[Request, Judgement]], V: int, looks: int) -> Wealth | None:
    """Add up the bets on decodes of one setting and one request's guidance and filter; None where nothing was bet.

    An image whose numbers were met before counts once. Where the bets are won, the last decode has a defect.

    Effects: on the judgements.
    """
    made: Wealth | None = None
    seen = set[tuple[int, int]]()
    for request, judgement in judgements:
        new = [b for b, address in enumerate(request.addresses) if address not in seen]
        seen.update(request.addresses)
        if not judgement.won or not new:
            continue
        won_BAS = torch.tensor(judgement.won, dtype=torch.float64)[new]
        if made is None:
            made = Wealth(usual_alternatives(request, V), won_BAS.shape[2], looks)
        mean_A, variance_A = torch.tensor(judgement.under, dtype=torch.float64)
        made.take(Bets(won_BAS, mean_A, variance_A))
    if made is not None and made.is_lost:
        request, judgement = next(each for each in reversed(judgements) if each[1].won)
        _, scale = made.best()
        judgement.defects.append(Divergence("law", made.says(), **request.where(0), scale=scale))
    return made


def rows_along(
    network: Network, models: ModelPair, request: Request, labels_B: Tensor, tokens_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a network's rows_RLV along tokens, and its guided_BLV."""
    return teacher_forced(network, models.vae, request, labels_B, tokens_BL, models.pyramid.S)[:2]


def survivors(guided_BlV: Tensor, request: Request, allowed: float) -> tuple[Tensor, Tensor]:
    """Return which tokens may pass a filter, and which must, if the decoder's logits are moved and the reference's."""
    flat_NV, V = guided_BlV.flatten(0, 1).double(), guided_BlV.shape[-1]
    most = V
    if 0 < request.top_k < V:  # others are dropped for certain
        kth_N1 = flat_NV.topk(request.top_k).values[:, -1:]
        most = int((flat_NV + 4 * allowed >= kth_N1).sum(1).max())
    values_NK, columns_NK = flat_NV.topk(most) if most < V else (flat_NV, None)
    both = filter_survivors(values_NK, request, 2 * allowed)
    if columns_NK is not None:
        none_NV = torch.zeros_like(flat_NV, dtype=torch.bool)
        both = none_NV.scatter(1, columns_NK, both[0]), none_NV.scatter(1, columns_NK, both[1])
    return both[0].view_as(guided_BlV), both[1].view_as(guided_BlV)


@torch.inference_mode()
def bet(seen: TokensSeen, pyramid: ScalePyramid, alternatives: Sequence[Alternative]) -> Bets:
    """Bet on every token of a batch."""
    won, under_A2, forbidden = [], torch.zeros(len(alternatives), 2, dtype=torch.float64), []
    for si in pyramid:
        law = _Law.of(seen, pyramid, si)
        few = max(1, CHUNK // law.probs_BlK.numel())  # small scales have one kernel for many alternatives
        bets = [law.bet(alternatives[k : k + few]) for k in range(0, len(alternatives), few)]
        won.append(torch.cat([won_AB for won_AB, _ in bets]).T)
        under_A2 += torch.cat([under_2A.T for _, under_2A in bets]).cpu()
        forbidden += [(b, pyramid.draws.begin(si) + place) for b, place in law.forbidden()]
    mean_A, variance_A = under_A2.T
    return Bets(torch.stack(won, 2).cpu(), mean_A, variance_A, tuple(sorted(forbidden)))


@dataclass(frozen=True)
class _Law:
    """The target's law of the draws of one scale, along the decoder's own tokens.

    It holds the K most likely tokens of every draw, in ascending order, K being the most that the filter
    keeps anywhere: no bet is on others, and logits are sorted once. Without a filter K is V, in the codebook's order.
    """

    request: Request  # with the filter of this scale
    steps: FamilySteps
    si: int
    S: int
    ascending_BlV: Tensor  # logits after guidance; not sorted where there is no filter
    columns_BlK: Tensor | None  # which tokens the K are; None = all of them
    rows_RlK: Tensor  # logits before guidance
    drafts_BlK: Tensor  # the draft's law
    logits_BlK: Tensor  # after guidance and filter
    probs_BlK: Tensor
    possible_BlV: Tensor  # tokens that take part under some logits within rounding
    is_open_Bl: Tensor  # where rounding cannot change which tokens take part
    token_Bl: Tensor
    before_L: Tensor | None  # tokens of the image before the first one, at this scale
    distance: float  # how far rounding may move the logarithm of a probability

    @classmethod
    def of(cls, seen: TokensSeen, pyramid: ScalePyramid, si: int) -> Self:
        request, span, delta = seen.request.at(si), pyramid.draws.span(si), seen.allowed_S[si]
        wide = torch.promote_types(seen.rows_RLV.dtype, torch.float32)  # what a bet rounds is not in the budget
        shown = (seen.guided_BLV, seen.rows_RLV, seen.draft_RLV)
        guided_BlV, rows_RlV, draft_RlV = (each[:, span].to(wide) for each in shown)
        possible_BlV, certain_BlV = survivors(guided_BlV, request, delta)
        draft_BlV = seen.steps.guide(draft_RlV, request.guidance, si, pyramid.S)[: len(guided_BlV)]
        drafts_BlV = filter_logits(draft_BlV, request.top_k, request.top_p).softmax(-1)
        columns_BlK, ascending_BlV, logits_BlK = None, guided_BlV, guided_BlV
        if request.top_k or request.top_p:
            ascending_BlV, order_BlV = guided_BlV.sort(-1)
            logits_BlV = _above(ascending_BlV, request.top_k, request.top_p)
            K = int(logits_BlV.isfinite().sum(-1).max())
            logits_BlK, columns_BlK = logits_BlV[..., -K:], order_BlV[..., -K:].contiguous()
            rows_RlV = rows_RlV.gather(2, columns_BlK.repeat(len(rows_RlV) // len(guided_BlV), 1, 1))
            drafts_BlV = drafts_BlV.gather(2, columns_BlK)
        return cls(
            request, seen.steps, si, pyramid.S, ascending_BlV, columns_BlK, rows_RlV, drafts_BlV, logits_BlK,
            logits_BlK.softmax(-1), possible_BlV, (possible_BlV == certain_BlV).all(-1), seen.tokens_BL[:, span],
            None if seen.before_L is None else seen.before_L[span], 4 * delta,
        )  # fmt: skip

    def forbidden(self) -> list[list[int]]:
        """Return image and place of tokens that the filter drops for certain."""
        return torch.nonzero(~self.possible_BlV.gather(2, self.token_Bl[..., None])[..., 0]).tolist()

    def alternative(self, a: Alternative) -> Tensor:
        """Return the probabilities (B, l, K) of an alternative; what is missing to 1 is those of other tokens."""
        if a.share:
            return torch.lerp(self.probs_BlK, self._source(a.source), a.share)
        if a.top_k is not None or a.top_p is not None:
            ascending_BlV, K = self.ascending_BlV, self.probs_BlK.shape[-1]
            top_k = self.request.top_k if a.top_k is None else a.top_k
            top_p = self.request.top_p if a.top_p is None else a.top_p
            if self.columns_BlK is None:
                return filter_logits(ascending_BlV, top_k, top_p).softmax(-1)
            return _above(ascending_BlV, top_k, top_p).softmax(-1)[..., -K:]
        # the filter keeps what it keeps under the target's law
        if a.guidance is None and not a.later and not a.swapped:
            return (self.logits_BlK / a.temperature).softmax(-1)
        B, si = len(self.probs_BlK), min(max(self.si + a.later, 0), self.S - 1)
        rows_RlK = self.rows_RlK.roll(B, 0) if a.swapped else self.rows_RlK
        guidance = self.request.guidance if a.guidance is None else a.guidance
        # without guidance every row stays itself, the conditional ones first
        logits_BlK = self.steps.guide(rows_RlK, guidance, si, self.S)[:B]
        return logits_BlK.masked_fill(self.probs_BlK == 0, -torch.inf).softmax(-1)

    def _source(self, source: TokenSource) -> Tensor:
        """Return the probabilities (B, l, K) of a source of tokens."""
        if source is TokenSource.DRAFT:
            return self.drafts_BlK
        if source is TokenSource.UNIFORM:
            takes_part_BlK = (self.probs_BlK > 0).to(self.probs_BlK)
            return takes_part_BlK / takes_part_BlK.sum(-1, keepdim=True)
        if source is TokenSource.TOP:
            top_Bl1 = self.probs_BlK.argmax(-1, keepdim=True)
            return torch.zeros_like(self.probs_BlK).scatter(2, top_Bl1, 1.0)
        if self.before_L is not None:
            return self._certain(torch.cat((self.before_L[None], self.token_Bl[:-1])))
        # no image before the first one: nothing is bet there
        return torch.cat((self.probs_BlK[:1], self._certain(self.token_Bl.roll(1, 0))[1:]))

    def _certain(self, chosen_Bl: Tensor) -> Tensor:
        if self.columns_BlK is None:
            return torch.zeros_like(self.probs_BlK).scatter(2, chosen_Bl[..., None], 1.0)
        return (self.columns_BlK == chosen_Bl[..., None]).to(self.probs_BlK)

    @cached_property
    def is_token_BlK(self) -> Tensor:
        """The decoder's tokens, 1 in their place."""
        return self._certain(self.token_Bl)

    def bet(self, alternatives: Sequence[Alternative]) -> tuple[Tensor, Tensor]:
        """Return what each alternative wins of every image, and mean and variance of it for the last image under it."""
        law_ABlK, p_BlK = torch.stack([self.alternative(a) for a in alternatives]), self.probs_BlK
        held_ABlK = torch.minimum(law_ABlK, MOST_RATIO * p_BlK)
        ratio_ABlK = held_ABlK / p_BlK.clamp_min(TINY)
        mean_ABl = held_ABlK.sum(-1)
        above_ABl = held_ABlK.sub_(p_BlK).clamp_min_(0).sum(-1)
        up, down = math.expm1(self.distance), -math.expm1(-self.distance)
        bound_ABl = mean_ABl + up * above_ABl + down * (above_ABl - mean_ABl + 1)
        bound_ABl += DRAW_ROUNDING * ratio_ABlK.amax(-1)
        won_ABl = ((ratio_ABlK * self.is_token_BlK).sum(-1) / bound_ABl).log()
        last_AlK = law_ABlK[:, -1]
        factor_AlK = (ratio_ABlK[:, -1] / bound_ABl[:, -1, :, None]).log().clamp_min(LEAST)
        others_Al = 1 - last_AlK.sum(-1)
        others_Al = torch.where(others_Al > DRAW_ROUNDING, others_Al, 0.0)
        mean_Al = (last_AlK * factor_AlK).sum(-1) + others_Al * LEAST
        square_Al = (last_AlK * factor_AlK.square()).sum(-1) + others_Al * LEAST**2
        return self._sum(won_ABl), self._sum(torch.stack((mean_Al, square_Al - mean_Al.square())), -1)

    def _sum(self, each_Anl: Tensor, image: int | slice = slice(None)) -> Tensor:
        return (each_Anl.double().clamp_min(LEAST) * self.is_open_Bl[image]).sum(-1)


def _above(ascending_BlV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return sorted logits with -inf where the reference's `filter_logits` has it; tokens that tie stay together."""
    if top_k:
        ascending_BlV = ascending_BlV.masked_fill(ascending_BlV < ascending_BlV[..., -top_k:][..., :1], -torch.inf)
    if top_p:
        dropped_BlV = ascending_BlV.softmax(-1).cumsum(-1) <= 1 - top_p
        dropped_BlV[..., -1] = False  # never the largest
        ascending_BlV = ascending_BlV.masked_fill(dropped_BlV, -torch.inf)
    return ascending_BlV
