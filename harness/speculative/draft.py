"""Drafting: the small network proposes scales one after the other."""

from __future__ import annotations

from functools import partial

from harness.speculative.accept import Policy, Proposal, Window
from harness.speculative.parts import Parts
from harness.speculative.state import DecodeState, pick, place
from harness.speculative.verify import Pass, Step, forward_window


def draft_generate_batch(
    state: DecodeState, parts: Parts, policy: Policy, images: list[int], first: int, count: int
) -> Proposal:
    """Propose scales first..first+count-1 for images that are all at scale `first`.

    Args:
        state: its drafted tensors, its raw inputs of later scales and the draft's cache are written; nothing final
            changes.
        parts: the decoder's parts.
        policy: how the draft draws.
        images: one group.
        first: first scale to propose.
        count: number of scales, >= 1.

    Returns:
        The proposal, window of all `count` scales; overwritten by the next one.

    Effects: draws as "draft"; raises the draft's cache lengths.
    """
    last = first + count - 1
    state.drafted_f_hat_BCPP[place(images, len(state.done))] = pick(state.f_hat_BCPP, images)
    for si in range(first, last + 1):
        propose = Step(f"propose {policy.name}", partial(_propose_scale, state, parts, policy, images, si))
        forward_window(state, parts, state.draft, images, si, si, propose)
    window = slice(state.pyramid.begin(first), state.pyramid.end(last))
    tokens_bn = pick(state.drafted_tokens_BL[:, window], images)
    return Proposal(tokens_bn, pick(state.drafted_probs_BLV[:, window], images))


def _propose_scale(state: DecodeState, parts: Parts, policy: Policy, images: list[int], si: int, done: Pass) -> None:
    """Draw scale `si` from the draft's logits and prepare the input of the next one."""
    pyramid, request = state.pyramid, state.request
    rows, span = place(images, len(state.done)), pyramid.span(si)
    guided_blV = parts.guide(done.rows_RnV, pyramid, request.cfg, si, si)
    probs_blV = parts.filter_logits(guided_blV, request.top_k, request.top_p).softmax(-1)
    idx_bl = policy.propose(parts, probs_blV, Window(state.noise, pyramid, images, si, si, "draft"))
    state.drafted_tokens_BL[rows, span] = idx_bl
    state.drafted_probs_BLV[rows, span] = probs_blV
    if si + 1 < pyramid.S:
        f_hat = parts.accumulate(pick(state.drafted_f_hat_BCPP, images), idx_bl, si, state.vae.quantizer, pyramid)
        state.drafted_f_hat_BCPP[rows] = f_hat
        state.raw_BLC[rows, pyramid.span(si + 1)] = parts.next_input(f_hat, si + 1, pyramid)
