"""From a drafted window to an outcome: window, proposal, policy and its judgement, and what is written down of a round.

Promise: judged per image and per scale, never averaged over the batch. The coupling of draft and target and the
acceptance rule are one choice, so a policy is one object with its contract; `policies.parse` makes them. Counts and
kept tensors are those of scales that became final; `fetch_outcome` alone waits for the device in a round, and
`check_finite`, once a decode.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from harness.errors import NonFiniteError
from harness.protocol import Contract, Noise, Round, ScalePyramid
from harness.speculative._state import DecodeState, pick
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
        return range(self.first, self.last + 1)

    @property
    def span(self) -> slice:
        """Draws of the window."""
        return slice(self.pyramid.draws.begin(self.first), self.pyramid.draws.end(self.last))

    def pick(self, x_BX: Tensor) -> Tensor:
        return pick(x_BX, self.images)

    def exponential(self, stream: str) -> Tensor:
        """Return E_bnV of the window's draws in order. Effects: entries in the ledger."""
        return torch.cat([self.pick(self.noise.exponential(si, stream, self.reader)) for si in self.scales], 1)

    def uniform(self, stream: str) -> Tensor:
        """Return u_bn of the window's draws in order. Effects: entries in the ledger."""
        return torch.cat([self.pick(self.noise.uniform(si, stream, self.reader)) for si in self.scales], 1)

    def read_as(self, reader: str) -> Self:
        """Return the same window for another consumer of numbers."""
        return replace(self, reader=reader)

    def split(self, x_bnX: Tensor) -> tuple[Tensor, ...]:
        """Return x_blX of every scale."""
        by_scale: tuple[Tensor, ...] = x_bnX.split(self.pyramid.draws.counts[self.first : self.last + 1], 1)
        return by_scale

    def whole(self, accepted_bn: Tensor) -> Tensor:
        """Return whole_bs: True where every token of a scale is accepted."""
        return torch.stack([accepted_bl.all(1) for accepted_bl in self.split(accepted_bn)], 1)


@dataclass(frozen=True)
class Proposal:
    """What the draft proposes for a window: tokens_bn, and probs_bnV, the law that they were drawn from."""

    tokens_bn: Tensor
    probs_bnV: Tensor


@dataclass(frozen=True)
class Acceptance:
    """The judgement on one window of drafted scales."""

    tokens_bn: Tensor  # what a scale's tokens become where it is the first imperfect one
    accepted_bn: Tensor  # True where the drafted token is accepted
    whole_bs: Tensor  # True where the scale is accepted as drafted
    law_bnV: Tensor | None = None  # what the final tokens are drawn from; None = the target's law

    def tokens_by_scale(self, proposal: Proposal, window: Window) -> list[Tensor]:
        """Return tokens_bl of every scale: the drafted ones where it is accepted, else what it becomes."""
        drafted, otherwise = window.split(proposal.tokens_bn), window.split(self.tokens_bn)
        scales = zip(self.whole_bs.unbind(1), drafted, otherwise, strict=True)
        return [torch.where(whole_b[:, None], drafted_bl, else_bl) for whole_b, drafted_bl, else_bl in scales]


@dataclass(frozen=True)
class Policy:
    name: str  # as on the command line
    contract: Contract  # what the policy claims (design §1)
    propose: Callable[[Parts, Tensor, Window], Tensor]  # draws the draft's tokens of a window from its law
    accept: Callable[[Parts, Proposal, Tensor, Window], Acceptance]  # judges a proposal under the target's law
    # draws the target's tokens of a scale that was not drafted (the bonus scale)
    extend: Callable[[Parts, Tensor, Window], Tensor]
    greedy: bool = False  # the oracle is the reference with argmax in place of the draw
    trusted: tuple[int, int] = (0, 0)  # half-open range of scales whose drafted tokens are final without a target pass
    # the other scales are drafted and verified; False: the target decides them alone, one a pass
    speculates: bool = True
    entry: int = 0  # scale at which the labour changes hands; at most S
    top: int = 1  # smallest V that the policy needs
    reason: str = ""  # why it claims this contract and no other
    # which law a token is drawn from is known before the numbers that it is drawn by: traces can show it
    shows_law: bool = False

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


def drafted_proposal(state: DecodeState, window: Window) -> Proposal:
    """Return what the draft proposes for the window; overwritten by the next round."""
    tokens_BL, probs_BLV = state.drafted_tokens_BL[:, window.span], state.drafted_probs_BLV[:, window.span]
    return Proposal(window.pick(tokens_BL), window.pick(probs_BLV))


@dataclass(frozen=True)
class Verified:
    """What the target says of a window: laws by scale, and the tensors that a defect is traced with."""

    x_RnD: Tensor
    rows_RnV: Tensor
    guided_bnV: Tensor
    probs_by_scale: list[Tensor]  # what final tokens are drawn from, once they are judged


@dataclass(frozen=True)
class Decision:
    """What the device made of a window: tokens by scale, the numbers that the host needs, tensors for a diagnosis."""

    tokens_by_scale: list[Tensor]
    numbers: Tensor  # of `round_numbers`; of `finite_flag` alone where nothing was drafted
    verified: Verified | None


@dataclass(frozen=True)
class Outcome:
    """What a round decided, by image of the group: final tokens, whole scales, final scales, kept tokens by scale."""

    tokens_by_scale: list[Tensor]
    accepted: list[int]
    finished: list[int]
    accepted_bs: list[list[int]]


def trusted_outcome(state: DecodeState, window: Window, proposal: Proposal) -> Outcome:
    """Take the draft's tokens as they are; no target pass. Effects: their law is written down."""
    if state.law_BLV is not None:
        state.law_BLV[window.images, window.span] = proposal.probs_bnV.to(state.law_BLV.dtype)
    count, B = len(window.scales), len(window.images)
    kept = list(window.pyramid.draws.counts[window.first : window.last + 1])
    return Outcome(list(window.split(proposal.tokens_bn)), [count] * B, [count] * B, [kept] * B)


def decided_outcome(state: DecodeState, decision: Decision, window: Window) -> Outcome:
    """Return what comes of a scale that the target decides alone, without a wait: `check_finite` looks later."""
    b = len(window.images)
    state.unchecked.append(("target", window.first, decision.numbers.clone()))
    return Outcome(decision.tokens_by_scale, [0] * b, [1] * b, [[]] * b)


def check_finite(state: DecodeState) -> None:
    """Refuse logits that are not finite, of passes that nobody waited for. Raises `NonFiniteError`."""
    if state.unchecked:
        names, firsts, flags = zip(*state.unchecked, strict=True)
        for name, first, is_finite in zip(names, firsts, torch.cat(flags).tolist(), strict=True):
            if not is_finite:
                raise NonFiniteError(f"{name}.logits", f"the pass that began at scale {first}")


def finite_flag(rows_RnV: Tensor) -> Tensor:
    """Return one number: 1 where all logits are finite, else 0."""
    return torch.isfinite(rows_RnV).all().long()[None]


def round_numbers(judged: Acceptance, rows_RnV: Tensor, window: Window) -> Tensor:
    """Gather what the host must know of a round: whether the target's logits are finite, accepted_b and accepted_bs."""
    accepted_b = judged.whole_bs.long().cumprod(1).sum(1)
    accepted_bs = torch.stack([accepted_bl.sum(1) for accepted_bl in window.split(judged.accepted_bn)], 1)
    return torch.cat((finite_flag(rows_RnV), accepted_b, accepted_bs.flatten()))


def fetch_outcome(decision: Decision, window: Window, bonus: bool) -> Outcome:
    """Bring a decision to the host: the round's one wait. Raises `NonFiniteError` for the target's logits."""
    is_finite, *counts = decision.numbers.tolist()
    if not is_finite:
        raise NonFiniteError("target.logits", f"the pass that began at scale {window.first}")
    b, s = len(window.images), len(window.scales)
    accepted = counts[:b]
    finished = [whole + (1 if whole < s or bonus else 0) for whole in accepted]
    accepted_bs = [counts[b + k * s : b + (k + 1) * s] for k in range(b)]
    return Outcome(decision.tokens_by_scale, accepted, finished, accepted_bs)


def keep_intermediates(state: DecodeState, window: Window, outcome: Outcome, verified: Verified | None) -> None:
    """Write the pass's tensors of the scales that it made final into the state's intermediates."""
    kept, pyramid, request, b = state.intermediates, state.pyramid, state.request, len(window.images)
    if kept is None or verified is None:
        return
    for offset in range(max(outcome.finished)):
        group = [k for k, count in enumerate(outcome.finished) if count > offset]
        rows_b = torch.tensor([window.images[k] for k in group])
        rows_R = request.rows_of(*rows_b.tolist())
        from_R = [half * b + k for half in range(request.R // request.B) for k in group]
        si, begin = window.first + offset, pyramid.begin(window.first)
        span, draws = pyramid.span(si), pyramid.draws.span(si)
        scale = slice(draws.start - window.span.start, draws.stop - window.span.start)
        kept.x_RLD[rows_R, span] = verified.x_RnD[from_R, span.start - begin : span.stop - begin]
        kept.rows_RLV[rows_R, draws] = verified.rows_RnV[from_R, scale]
        kept.guided_BLV[rows_b, draws] = verified.guided_bnV[group, scale]
        if state.law_BLV is not None:
            state.law_BLV[rows_b, draws] = verified.probs_by_scale[offset][group].to(state.law_BLV.dtype)


def record_round(state: DecodeState, window: Window, outcome: Outcome, k: int, before: tuple[int, int]) -> Round:
    """Count the round of the group's k-th image. Of a scale that is not accepted, single tokens may be."""
    draws, image, count, accepted = state.pyramid.draws, window.images[k], len(window.scales), outcome.accepted[k]
    rejected = window.first + accepted  # the first imperfect scale, or that after the drafted ones, if any
    corrected, bonus = accepted < count, outcome.finished[k] > count
    kept = outcome.accepted_bs[k][accepted] if corrected else 0
    return Round(
        first=window.first, drafted=count, accepted=accepted, corrected=corrected, bonus=bonus,
        accepted_tokens=draws.begin(rejected) - draws.begin(window.first) + kept,
        corrected_tokens=draws.counts[rejected] - kept if corrected else 0,
        bonus_tokens=draws.counts[rejected] if bonus else 0, target_rows=state.target.rows[image] - before[0],
        draft_rows=state.draft.rows[image] - before[1], target_cache=state.target.cache.lengths[image],
        draft_cache=state.draft.cache.lengths[image],
    )  # fmt: skip
