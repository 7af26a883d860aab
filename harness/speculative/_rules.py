"""The rules that policies are made of: how tokens are drawn, which drafted ones are accepted, what replaces others.

Promise: pure functions of tensors and numbers, per image and per scale; each says which streams it reads.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.protocol.noise import ACCEPT, CORRECT, DRAFT, TOKEN
from harness.speculative._accept import Acceptance, Proposal, Window
from harness.speculative.parts import Parts

Test = Callable[[Proposal, Tensor, Tensor], Tensor]  # proposal, target_probs_bnV, target's own draws_bn -> number_bn


def race(parts: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
    """Draw tokens_bn under the shared numbers. Reads stream TOKEN."""
    return parts.draw(probs_bnV, window.exponential(TOKEN))


def most_likely(parts: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
    """Return the most likely token of every position, the lowest index on a tie; reads no numbers."""
    return probs_bnV.argmax(-1)


def race_alone(parts: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
    """Draw tokens_bn under numbers that nobody else reads. Reads stream DRAFT."""
    return parts.draw(probs_bnV, window.exponential(DRAFT))


def accept_equal(
    parts: Parts,
    proposal: Proposal,
    target_probs_bnV: Tensor,
    window: Window,
    choose: Callable[[Parts, Tensor, Window], Tensor],
) -> Acceptance:
    """Contract A: a drafted token is accepted iff it is what the target itself chooses there (design §1)."""
    tokens_bn = choose(parts, target_probs_bnV, window)
    accepted_bn = tokens_bn == proposal.tokens_bn
    return Acceptance(tokens_bn, accepted_bn, window.whole(accepted_bn))


def accept_rejection(parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window) -> Acceptance:
    """Contract B: keep with probability min(1, target/draft), redraw what fails from the residual.

    Reads streams ACCEPT and CORRECT. Tokens of a scale are independent given the earlier scales, so each failing token
    of the first imperfect scale has its own residual, and that scale is final (design §1).
    """
    at_bn1 = proposal.tokens_bn[..., None]
    draft_bn, target_bn = proposal.probs_bnV.gather(-1, at_bn1)[..., 0], target_probs_bnV.gather(-1, at_bn1)[..., 0]
    accepted_bn = parts.keep_drafted(window.read_as("accept").uniform(ACCEPT), draft_bn, target_bn)
    law_bnV = parts.residual(proposal.probs_bnV, target_probs_bnV)
    redrawn_bn = parts.draw(law_bnV, window.read_as("correct").exponential(CORRECT))
    return Acceptance(torch.where(accepted_bn, proposal.tokens_bn, redrawn_bn), accepted_bn, window.whole(accepted_bn))


def accept_by_rate(
    parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rule: tuple[Test, float, bool]
) -> Acceptance:
    """Contract C: a scale is accepted when at least RATE of its tokens pass; `rule` is (test, RATE, partial)."""
    test, rate, token_level = rule
    own_bn = race(parts, target_probs_bnV, window)
    passed_bn = test(proposal, target_probs_bnV, own_bn).bool()
    # count / l and a RATE such as 0.07 round to the same float64, so 7 of 100 meets it
    whole = [passed_bl.double().sum(1) / passed_bl.shape[1] >= rate for passed_bl in window.split(passed_bn)]
    return _replace(proposal, own_bn, passed_bn & token_level, torch.stack(whole, 1))


def accept_by_kl(
    parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rule: tuple[float, bool]
) -> Acceptance:
    """Contract C: a scale is accepted when its mean KL(target, draft) is small; `rule` is (BOUND, partial)."""
    bound, token_level = rule
    own_bn = race(parts, target_probs_bnV, window)
    draft_bnV = proposal.probs_bnV
    terms_bnV = torch.where(target_probs_bnV > 0, target_probs_bnV * (target_probs_bnV / draft_bnV).log(), 0.0)
    kl_bn = terms_bnV.sum(-1).clamp_min(0)  # a rounding below zero is zero; infinite where the draft rules a token out
    whole = torch.stack([kl_bl.mean(1) <= bound for kl_bl in window.split(kl_bn)], 1)
    near_bn = (kl_bn <= bound) & token_level
    # a token and its law go together: a whole scale's, or that of a token that is near
    by_scale = zip(whole.unbind(1), window.split(near_bn), strict=True)
    drafted_bn = torch.cat([near_bl | whole_b[:, None] for whole_b, near_bl in by_scale], 1)
    judged = _replace(proposal, own_bn, near_bn, whole)
    return replace(judged, law_bnV=torch.where(drafted_bn[..., None], draft_bnV, target_probs_bnV))


def accept_by_coin(
    parts: Parts, proposal: Proposal, target_probs_bnV: Tensor, window: Window, rate: float
) -> Acceptance:
    """Contract C, for benches: accept a scale if its first ACCEPT number, the same in every decode, is below RATE."""
    own_bn = race(parts, target_probs_bnV, window)
    u_bn = window.read_as("accept").uniform(ACCEPT)
    whole_bs = torch.stack([u_bl[:, 0] < rate for u_bl in window.split(u_bn)], 1)
    return Acceptance(own_bn, own_bn == proposal.tokens_bn, whole_bs)


def _replace(proposal: Proposal, own_bn: Tensor, accepted_bn: Tensor, whole_bs: Tensor) -> Acceptance:
    """What a rejected scale becomes: the target's own draws, but for the tokens that are accepted."""
    tokens_bn = torch.where(accepted_bn, proposal.tokens_bn, own_bn)
    return Acceptance(tokens_bn, tokens_bn == proposal.tokens_bn, whole_bs)


def is_most_likely(proposal: Proposal, target_probs_bnV: Tensor, own_bn: Tensor) -> Tensor:
    """Tell where the drafted token is the target's most likely one."""
    return proposal.tokens_bn == target_probs_bnV.argmax(-1)


def is_own_draw(proposal: Proposal, target_probs_bnV: Tensor, own_bn: Tensor) -> Tensor:
    """Tell where the drafted token is the target's own draw."""
    return proposal.tokens_bn == own_bn


def is_in_top(proposal: Proposal, target_probs_bnV: Tensor, own_bn: Tensor, k: int) -> Tensor:
    """Tell where the drafted token is among the target's k most likely ones (those tied with the k-th count)."""
    kth_bn = target_probs_bnV.topk(k).values[..., -1]
    drafted_bn = target_probs_bnV.gather(-1, proposal.tokens_bn[..., None])[..., 0]
    return (drafted_bn >= kth_bn) & (drafted_bn > 0)
