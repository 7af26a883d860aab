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

One module: bounds, laws and bets are one computation over the same draws, and the proof above is about all of it.

Source: Shafer, "Testing by betting", Journal of the Royal Statistical Society A 184 (2021); Ville (1939).
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor

from harness.judge._bets import Alternative, Bets, TokenSource, Wealth, usual_alternatives
from harness.judge._evidence import Evidence
from harness.judge._ties import survivors
from harness.judge._verdict import Divergence, Judgement
from harness.models import ModelPair, Network
from harness.protocol import Guidance, Request, ScalePyramid
from harness.reference import FamilySteps, family_of, filter_logits, teacher_forced
from harness.rounding import Budget

DRAW_ROUNDING = 2.0**-18  # of a draw from float32 numbers, total variation, and of a ratio of float32 probabilities
TINY = 1e-37  # below any probability that float32 numbers draw
LEAST = -80.0  # of the logarithm of a factor: a loss that is called smaller adds exp(-80) to what is expected
MOST_RATIO = 64.0
# numbers of a tensor of some alternatives' laws, and of one law's: caches are small, and a GPU wants few kernels
CHUNK, CHUNK_OF_GPU = (2**20, 2**20), (2**26, 2**24)
DRAWS_UNDER = 32  # of a scale, evenly spread, on which mean and variance under an alternative are computed


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
    # the target's guided_BLV along the tokens if its guidance, which acts between blocks, were another
    guided_by: Callable[[Guidance], Tensor] | None = None

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        """Take them from a judgement's evidence; `evidence.expected` is along the decoder's own tokens."""
        models, request, tokens_BL = evidence.models, evidence.request, evidence.actual.tokens_BL
        shown, labels_B = evidence.expected.shown, evidence.numbers.labels(models.target.config.classes)
        draft_RLV = rows_along(models.draft, models, request, labels_B, tokens_BL)[0]
        steps, allowed_S = family_of(models.target), allowed_by(evidence.budget, models, request)
        anew = partial(_guided_by, models, request, labels_B, tokens_BL)
        return cls(request, tokens_BL, shown.rows_RLV, shown.guided_BLV, draft_RLV, allowed_S, steps, guided_by=anew)

    @classmethod
    def along(
        cls, models: ModelPair, budget: Budget, request: Request, tokens_BL: Tensor, before_L: Tensor | None = None
    ) -> Self:
        """Ask both networks along the tokens of a request with labels; `before_L` is the image before the first one."""
        labels_B = torch.tensor(request.labels, device=models.device)
        rows_RLV, guided_BLV = rows_along(models.target, models, request, labels_B, tokens_BL)
        draft_RLV = rows_along(models.draft, models, request, labels_B, tokens_BL)[0]
        allowed_S, steps = allowed_by(budget, models, request), family_of(models.target)
        anew = partial(_guided_by, models, request, labels_B, tokens_BL)
        return cls(request, tokens_BL, rows_RLV, guided_BLV, draft_RLV, allowed_S, steps, before_L, anew)


def _guided_by(models: ModelPair, request: Request, labels_B: Tensor, tokens_BL: Tensor, guidance: Any) -> Tensor:
    return rows_along(models.target, models, replace(request, scale_guidance=guidance), labels_B, tokens_BL)[1]


def bet_on(evidence: Evidence, judgement: Judgement) -> Bets:
    """Bet on a decode of contract B; return the bets. Effects: on `judgement`: what `weigh_law` adds up."""
    alternatives = usual_alternatives(evidence.request, evidence.models.target.config.V)
    bets = bet(TokensSeen.of(evidence), evidence.models.pyramid, alternatives)
    judgement.won, judgement.under = bets.won_BAS.tolist(), [bets.mean_A.tolist(), bets.variance_A.tolist()]
    return bets


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


@torch.inference_mode()
def bet(seen: TokensSeen, pyramid: ScalePyramid, alternatives: Sequence[Alternative]) -> Bets:
    B, L, V = seen.guided_BLV.shape
    device, A, S = seen.guided_BLV.device, len(alternatives), pyramid.S
    levels, scale_L = pyramid.draws.levels(), torch.tensor(pyramid.draws.levels(), device=device)
    weight_BL = torch.zeros(B, L, dtype=torch.float64, device=device)
    for si in pyramid:  # on some draws of the last image, each of which stands for its neighbours
        span = pyramid.draws.span(si)
        some_l = weight_BL[-1, span][:: math.ceil((span.stop - span.start) / DRAWS_UNDER)]
        some_l.fill_((span.stop - span.start) / len(some_l))
    asked = dict.fromkeys(a.guidance for a in alternatives if a.between and a.guidance is not None)
    anew = {guidance: seen.guided_by(guidance) for guidance in asked if seen.guided_by is not None}
    won_ABL = torch.zeros(A, B, L, dtype=torch.float64, device=device)
    under_2A, forbidden = torch.zeros(2, A, dtype=torch.float64), list[tuple[int, int]]()
    of_laws, of_law = CHUNK if device.type == "cpu" else CHUNK_OF_GPU
    some = max(1, of_law // V)
    for own in dict.fromkeys(seen.request.every_filter):  # draws of one filter together
        draw_N = torch.tensor([d for d, si in enumerate(levels) if seen.request.filter(si) == own], device=device)
        count = len(draw_N)
        for begin in range(0, B * count, some):
            n = torch.arange(max(0, begin - 1), min(begin + some, B * count), device=device)
            at_2n = torch.stack((n // count, draw_N[n % count]))
            new = slice(1 if begin else 0, None)  # the draw before them is looked at, not bet on
            weight_n = weight_BL[at_2n[0], at_2n[1]]
            weight_n[: new.start] = 0
            draws = _Draws(seen, S, at_2n, scale_L[at_2n[1]], anew)
            won_An, some_2A = draws.bet(alternatives, weight_n, of_laws)
            won_ABL[:, at_2n[0, new], at_2n[1, new]] = won_An[:, new]
            under_2A += some_2A.cpu()
            forbidden += [(row, draw) for row, draw in at_2n[:, new][:, ~draws.is_possible_n[new]].T.tolist()]
    won_BAS = torch.stack([won_ABL[..., pyramid.draws.span(si)].sum(-1).T for si in pyramid], -1).cpu()
    return Bets(won_BAS, under_2A[0], under_2A[1], tuple(sorted(forbidden)))


@lru_cache(maxsize=256)
def row_weights(steps: FamilySteps, guidance: Guidance, S: int, later: int = 0) -> Tensor:
    """Return weight_S2 of the conditional and the unconditional row: what guidance, which is linear, makes of units."""
    unit_212 = torch.eye(2, dtype=torch.float64)[:, None]
    scales = (min(max(si + later, 0), S - 1) for si in range(S))
    return torch.stack([steps.guide(unit_212, guidance, si, S)[0, 0] for si in scales])


class _Draws:
    """The target's law of draws of one filter, in order, along the decoder's own tokens.

    It holds the K most likely tokens of every draw, ascending; K is the most that the filter keeps anywhere.
    """

    def __init__(
        self, seen: TokensSeen, S: int, at_2n: Tensor, scale_n: Tensor, anew: Mapping[Guidance, Tensor]
    ) -> None:
        (image_n, draw_n), self.anew = at_2n, anew
        self.seen, self.S, self.image_n, self.draw_n, self.scale_n = seen, S, image_n, draw_n, scale_n
        self.token_n = seen.tokens_BL[image_n, draw_n]
        self.request = request = seen.request.at(int(scale_n[0]))
        wide = torch.promote_types(seen.rows_RLV.dtype, torch.float32)  # what a bet rounds is not in the budget
        guided_nV = seen.guided_BLV[image_n, draw_n].to(wide)
        row_2n = torch.stack((image_n, image_n + len(seen.rows_RLV) - len(seen.tokens_BL)))
        rows_2nV, draft_2nV = (each[row_2n, draw_n].to(wide) for each in (seen.rows_RLV, seen.draft_RLV))
        draft_nV = (row_weights(seen.steps, request.guidance, S).T.to(draft_2nV)[:, scale_n, None] * draft_2nV).sum(0)
        self.allowed_n = torch.tensor(seen.allowed_S, dtype=torch.float64, device=scale_n.device)[scale_n]
        self.ascending_nV, order_nV = guided_nV.sort(-1)
        possible_nV, certain_nV = survivors(self.ascending_nV, request, self.allowed_n[:, None])
        self.is_possible_n = (possible_nV & (order_nV == self.token_n[:, None])).any(-1)
        self.is_open_n = (possible_nV == certain_nV).all(-1)  # where rounding cannot change which tokens take part
        logits_nV = _above(self.ascending_nV, [[request.filter(0)] * S], scale_n)[0]
        K = int(logits_nV.isfinite().sum(-1).max())
        self.columns_nK = order_nV[:, -K:].contiguous()  # which tokens the K are
        self.rows_2nK = rows_2nV.gather(2, self.columns_nK.expand(2, -1, -1))  # before guidance
        self.probs_nK = logits_nV[:, -K:].softmax(-1)
        self.draft_nV = filter_logits(draft_nV, request.top_k, request.top_p)  # the draft's logits
        self.drafts_nK = self.draft_nV.softmax(-1).gather(1, self.columns_nK)  # and its law
        above_nK = (self.probs_nK - self.drafts_nK).clamp_min(0)
        self.residual_nK = above_nK / above_nK.sum(-1, keepdim=True).clamp_min(TINY)  # what a right rule redraws from
        self.is_token_nK = (self.columns_nK == self.token_n[:, None]).to(self.probs_nK)
        # any place, where none is the token: it wins nothing then
        self.place_n1, self.is_met_n = self.is_token_nK.argmax(-1, keepdim=True), self.is_token_nK.amax(-1)
        self.most_nK, self.least_nK = MOST_RATIO * self.probs_nK, self.probs_nK.clamp_min(TINY)

    def laws(self, alternatives: Sequence[Alternative]) -> Tensor:
        """Return the probabilities (A, n, K) of alternatives of one kind; what is missing to 1 is other tokens'."""
        a = alternatives[0]
        if a.between:
            return self._of_passes(alternatives)
        return (self._of_sources if a.share else self._of_filters if a.filters else self._of_rows)(alternatives)

    def _of_passes(self, alternatives: Sequence[Alternative]) -> Tensor:
        """Return laws of other guidance between blocks; the filter keeps what it keeps under the target's."""
        made = [self.anew[a.guidance][self.image_n, self.draw_n] for a in alternatives if a.guidance is not None]
        logits_AnK = torch.stack([each.to(self.probs_nK).gather(1, self.columns_nK) for each in made])
        return logits_AnK.masked_fill_(self.probs_nK == 0, -torch.inf).softmax(-1)

    def _of_rows(self, alternatives: Sequence[Alternative]) -> Tensor:
        """Return laws of other guidance or temperature; the filter keeps what it keeps under the target's."""
        own, weights = self.seen.request.guidance, []
        for a in alternatives:
            guidance = own if a.guidance is None else a.guidance
            weight_S2 = row_weights(self.seen.steps, guidance, self.S, a.later) / a.temperature
            weights.append(weight_S2.flip(1) if a.swapped else weight_S2)
        first_An1, second_An1 = torch.stack(weights).to(self.probs_nK)[:, self.scale_n, :, None].unbind(2)
        logits_AnK = (first_An1 * self.rows_2nK[0]).addcmul_(second_An1, self.rows_2nK[1])
        if self.request.top_k > 0 or self.request.top_p > 0:
            logits_AnK.masked_fill_(self.probs_nK == 0, -torch.inf)
        return logits_AnK.softmax(-1)

    def _of_filters(self, alternatives: Sequence[Alternative]) -> Tensor:
        by_scale = [a.filters if len(a.filters) == self.S else a.filters * self.S for a in alternatives]
        return _above(self.ascending_nV, by_scale, self.scale_n).softmax(-1)[..., -self.probs_nK.shape[-1] :]

    def _of_sources(self, alternatives: Sequence[Alternative]) -> Tensor:
        """Return laws of which a share is another source's."""
        share_A11 = torch.tensor([a.share for a in alternatives]).to(self.probs_nK)[:, None, None]
        return torch.lerp(self.probs_nK, torch.stack([self._of_source(a.source) for a in alternatives]), share_A11)

    def _of_source(self, source: TokenSource) -> Tensor:
        p_nK, q_nK = self.probs_nK, self.drafts_nK
        match source:
            case TokenSource.DRAFT:
                return q_nK
            case TokenSource.TOP:
                top_nK = torch.zeros_like(p_nK)
                top_nK[:, -1] = 1.0
                return top_nK
            case TokenSource.UNIFORM:
                takes_part_nK = (p_nK > 0).to(p_nK)
                return takes_part_nK / takes_part_nK.sum(-1, keepdim=True)
            case TokenSource.BEFORE:
                tokens_BL, before_L = self.seen.tokens_BL, self.seen.before_L
                none_L = torch.full_like(tokens_BL[0], -1) if before_L is None else before_L
                before_n1 = torch.cat((none_L[None], tokens_BL[:-1]))[self.image_n, self.draw_n, None]
                # no image before the first one: nothing is bet there
                return torch.where(before_n1 < 0, p_nK, (self.columns_nK == before_n1).to(p_nK))
            case TokenSource.COOLED | TokenSource.HEATED:
                tau = 0.98 if source is TokenSource.COOLED else 1.02
                kept_as_nK = (self.draft_nV / tau).softmax(-1).gather(1, self.columns_nK)
                accepted_nK = q_nK * (p_nK / kept_as_nK.clamp_min(TINY)).clamp_max(1)
                return self._rejecting(accepted_nK, (p_nK - kept_as_nK).clamp_min(0))
            case TokenSource.EASILY:
                easier_nK = torch.where(p_nK > 0, p_nK + 0.005 * q_nK, 0.0)
                return self._rejecting(torch.minimum(q_nK, easier_nK), self.residual_nK)
        kept_nK = torch.minimum(p_nK, q_nK)
        if source is TokenSource.AGAIN:
            # the race begins for a token the later, the likelier it is by the draft: it lost that one
            r_nK = self.residual_nK
            return self._rejecting(kept_nK, r_nK.square() / (r_nK + q_nK).clamp_min(TINY))
        if source is TokenSource.NEIGHBOUR:
            return self._rejecting(kept_nK, self._as_the_one_before(self.residual_nK))
        from_target_nK = self._rejecting(kept_nK, p_nK)
        if source is TokenSource.FROM_TARGET:
            return from_target_nK
        return torch.where(kept_nK.sum(-1, keepdim=True) > 0.95, from_target_nK, p_nK)

    def _rejecting(self, kept_nK: Tensor, weight_nK: Tensor) -> Tensor:
        """Return the law of a rule that keeps so much of the draft's law, and draws the rest anew by weights."""
        sum_n1 = weight_nK.sum(-1, keepdim=True)
        redrawn_nK = torch.where(sum_n1 > 0, weight_nK / sum_n1.clamp_min(TINY), self.probs_nK)
        return kept_nK + (1 - kept_nK.sum(-1, keepdim=True)).clamp_min(0) * redrawn_nK

    def _as_the_one_before(self, residual_nK: Tensor) -> Tensor:
        """Return every draw's residual r if it had the numbers of the one before it, of the same scale.

        Where that one's token y won the race of its r', y wins this one with chance r(y)/(r(y) + r'(y)) or more.
        """
        of_own = ((each_nK * self.is_token_nK).sum(-1) for each_nK in (self.probs_nK, self.drafts_nK, residual_nK))
        y_n, p_n, q_n, before_n = (each_n.roll(1) for each_n in (self.token_n, *of_own))
        is_y_nK = (self.columns_nK == y_n[:, None]).to(residual_nK)
        here_n, redrawn_n = (residual_nK * is_y_nK).sum(-1), (1 - q_n / p_n.clamp_min(TINY)).clamp_min(0)
        follows_n = (self.scale_n == self.scale_n.roll(1)) & (self.image_n == self.image_n.roll(1))
        follows_n[:1] = False
        chance_n = follows_n * redrawn_n * here_n / (here_n + before_n).clamp_min(TINY)
        return torch.lerp(residual_nK, is_y_nK, chance_n[:, None])

    def bet(self, alternatives: Sequence[Alternative], weight_n: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Return won_An, and under_2A (mean, variance), of alternatives, by weights; `most` numbers of laws at once."""
        some, last_m = max(1, most // self.probs_nK.numel()), torch.nonzero(weight_n)[:, 0]
        by_kind = groupby(alternatives, lambda a: (a.between, a.share > 0, len(a.filters) > 0))
        parts = [kind[a : a + some] for _, each in by_kind for kind in [list(each)] for a in range(0, len(kind), some)]
        made = [self._bet_on(self.laws(part), last_m) for part in parts]
        won_An, under_2Am = torch.cat([each[0] for each in made]), torch.cat([each[1] for each in made], 1)
        return won_An * self.is_open_n, under_2Am @ (weight_n * self.is_open_n)[last_m]

    def _bet_on(self, law_AnK: Tensor, last_m: Tensor) -> tuple[Tensor, Tensor]:
        """Return won_An of laws, and under_2Am of some draws. Effects: on `law_AnK`; memory is what takes time."""
        p_nK, law_AmK = self.probs_nK, law_AnK[:, last_m]
        held_AnK = torch.minimum(law_AnK, self.most_nK, out=law_AnK)
        mean_An = held_AnK.sum(-1)
        above_An = (mean_An - torch.minimum(held_AnK, p_nK).sum(-1)).clamp_min(0)
        ratio_AnK = held_AnK.div_(self.least_nK)
        # 4δ is how far rounding may move the logarithm of a probability
        up_n, down_n = (each_n.to(p_nK) for each_n in ((4 * self.allowed_n).expm1(), -(-4 * self.allowed_n).expm1()))
        bound_An = mean_An + up_n * above_An + down_n * (above_An - mean_An + 1)
        bound_An += DRAW_ROUNDING * ratio_AnK.amax(-1)
        met_An = ratio_AnK.gather(2, self.place_n1.expand(len(ratio_AnK), -1, -1))[..., 0] * self.is_met_n
        won_An = (met_An / bound_An).log().double().clamp_min(LEAST)
        factor_AmK = ratio_AnK[:, last_m].div_(bound_An[:, last_m, None]).log_().clamp_min_(LEAST)
        others_Am = 1 - law_AmK.sum(-1)
        others_Am = torch.where(others_Am > DRAW_ROUNDING, others_Am, 0.0)
        mean_Am = law_AmK.mul_(factor_AmK).sum(-1) + others_Am * LEAST
        square_Am = law_AmK.mul_(factor_AmK).sum(-1) + others_Am * LEAST**2
        return won_An, torch.stack((mean_Am, square_Am - mean_Am.square())).double()


def _above(ascending_nV: Tensor, filters: Sequence[Sequence[tuple[int, float]]], scale_n: Tensor) -> Tensor:
    """Return sorted logits (A, n, V), -inf where `filter_logits` has it for (top_k, top_p) by scale; ties stay."""
    k_AS, p_AS = torch.tensor(filters, dtype=torch.float64).unbind(2)
    kept_AnV = ascending_nV.expand(len(filters), -1, -1)
    if (k_AS > 0).any():
        lowest_An = torch.where(k_AS > 0, ascending_nV.shape[-1] - k_AS, 0).long().to(scale_n.device)[:, scale_n]
        kth_An1 = ascending_nV.gather(1, lowest_An.T).T[..., None]
        kept_AnV = torch.where(ascending_nV < kth_An1, -torch.inf, ascending_nV)
    if (p_AS > 0).any():
        share_An1 = torch.where(p_AS > 0, 1 - p_AS, -1.0).to(ascending_nV)[:, scale_n, None]
        dropped_AnV = kept_AnV.softmax(-1).cumsum(-1) <= share_An1
        dropped_AnV[..., -1] = False  # never the largest
        kept_AnV = kept_AnV.masked_fill(dropped_AnV, -torch.inf)
    return kept_AnV
