"""What came of a round: what the device hands back, what the host makes of it, and what is written down.

Promise: counts and kept tensors are those of scales that became final, image by image; `fetch` alone waits for the
device, and `check_finite`, once a decode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import NonFiniteError
from harness.protocol.trace import Round
from harness.speculative.accept import Acceptance, Proposal, Window
from harness.speculative.state import DecodeState


def drafted(state: DecodeState, window: Window) -> Proposal:
    """Return what the draft proposes for the window; overwritten by the next round."""
    tokens_BL, probs_BLV = state.drafted_tokens_BL[:, window.span], state.drafted_probs_BLV[:, window.span]
    return Proposal(window.pick(tokens_BL), window.pick(probs_BLV))


@dataclass(frozen=True)
class Verified:
    """What the target says of a window: laws by scale, and the tensors that a defect is traced with."""

    x_RnD: Tensor
    rows_RnV: Tensor
    guided_bnV: Tensor
    probs_by_scale: list[Tensor]


@dataclass(frozen=True)
class Decision:
    """What the device made of a window: tokens by scale, the numbers that the host needs, tensors for a diagnosis."""

    tokens_by_scale: list[Tensor]
    numbers: Tensor  # of `numbers`; of `finite` alone where nothing was drafted
    verified: Verified | None


@dataclass(frozen=True)
class Outcome:
    """What a round decided, by image of the group: final tokens, whole scales, final scales, kept tokens by scale."""

    tokens_by_scale: list[Tensor]
    accepted: list[int]
    finished: list[int]
    kept_bs: list[list[int]]


def trust(window: Window, proposal: Proposal) -> Outcome:
    """Take the draft's tokens as they are; no target pass."""
    count, B = len(window.scales), len(window.images)
    kept = [window.pyramid.tokens(si) for si in window.scales]
    return Outcome(list(window.split(proposal.tokens_bn)), [count] * B, [count] * B, [kept] * B)


def decided(state: DecodeState, decision: Decision, window: Window) -> Outcome:
    """Return what comes of a scale that the target decides without a draft: known without a wait for the device.

    Effects: whether its logits are finite is asked when the decode ends (`check_finite`).
    """
    b = len(window.images)
    state.unchecked.append((window.first, decision.numbers.clone()))
    return Outcome(decision.tokens_by_scale, [0] * b, [1] * b, [[]] * b)


def check_finite(state: DecodeState) -> None:
    """Refuse logits that are not finite, of passes that nobody waited for. Raises `NonFiniteError`."""
    if state.unchecked:
        firsts, found = zip(*state.unchecked, strict=True)
        for first, is_finite in zip(firsts, torch.cat(found).tolist(), strict=True):
            if not is_finite:
                raise NonFiniteError("target.logits", f"the pass that began at scale {first}")


def finite(rows_RnV: Tensor) -> Tensor:
    """Return one number: 1 where all logits are finite, else 0."""
    return torch.isfinite(rows_RnV).all().long()[None]


def numbers(judged: Acceptance, rows_RnV: Tensor, window: Window) -> Tensor:
    """Gather what the host must know of a round: whether the target's logits are finite, accepted_b and kept_bs."""
    accepted_b = judged.whole_bs.long().cumprod(1).sum(1)
    kept_bs = torch.stack([kept_bl.sum(1) for kept_bl in window.split(judged.kept_bn)], 1)
    return torch.cat((finite(rows_RnV), accepted_b, kept_bs.flatten()))


def fetch(decision: Decision, window: Window, bonus: bool) -> Outcome:
    """Bring the numbers of a decision to the host: the round's one wait for the device.

    Raises:
        NonFiniteError: the target's logits are not finite.
    """
    is_finite, *counts = decision.numbers.tolist()
    if not is_finite:
        raise NonFiniteError("target.logits", f"the pass that began at scale {window.first}")
    b, s = len(window.images), len(window.scales)
    accepted = counts[:b]
    finished = [whole + (1 if whole < s or bonus else 0) for whole in accepted]
    return Outcome(
        decision.tokens_by_scale, accepted, finished, [counts[b + k * s : b + (k + 1) * s] for k in range(b)]
    )


def keep_intermediates(state: DecodeState, window: Window, outcome: Outcome, verified: Verified | None) -> None:
    """Write the pass's tensors of the scales that it made final into the state's intermediates."""
    kept, pyramid, B, b = state.intermediates, state.pyramid, len(state.done), len(window.images)
    if kept is None or verified is None:
        return
    for offset in range(max(outcome.finished)):
        group = [k for k, count in enumerate(outcome.finished) if count > offset]
        rows_b = torch.tensor([window.images[k] for k in group])
        rows_R = torch.cat((rows_b, B + rows_b))
        from_R = torch.tensor(group + [b + k for k in group])
        span = pyramid.span(window.first + offset)
        scale = slice(span.start - window.span.start, span.stop - window.span.start)
        kept.x_RLD[rows_R, span] = verified.x_RnD[from_R, scale]
        kept.rows_RLV[rows_R, span] = verified.rows_RnV[from_R, scale]
        kept.guided_BLV[rows_b, span] = verified.guided_bnV[group, scale]


def record(state: DecodeState, window: Window, outcome: Outcome, k: int, before: tuple[int, int]) -> Round:
    """Count the round of the group's k-th image. Tokens of a whole scale are accepted; else those that were kept."""
    pyramid, image, count, accepted = state.pyramid, window.images[k], len(window.scales), outcome.accepted[k]
    fallen = window.first + accepted  # the first imperfect scale, or that behind the drafted ones, if any
    corrected, bonus = accepted < count, outcome.finished[k] > count
    kept = outcome.kept_bs[k][accepted] if corrected else 0
    return Round(
        first=window.first,
        drafted=count,
        accepted=accepted,
        corrected=corrected,
        bonus=bonus,
        accepted_tokens=pyramid.begin(fallen) - pyramid.begin(window.first) + kept,
        corrected_tokens=pyramid.tokens(fallen) - kept if corrected else 0,
        bonus_tokens=pyramid.tokens(fallen) if bonus else 0,
        target_rows=state.target.rows[image] - before[0],
        draft_rows=state.draft.rows[image] - before[1],
        target_cache=state.target.cache.lengths[image],
        draft_cache=state.draft.cache.lengths[image],
    )
