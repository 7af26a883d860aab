"""Drafting: the small network proposes scales one after the other."""

from __future__ import annotations

import torch

from harness.speculative.accept import Policy, Proposal, Window
from harness.speculative.parts import Parts
from harness.speculative.state import DecodeState, pick, place
from harness.speculative.verify import forward_window


def draft_generate_batch(
    state: DecodeState, parts: Parts, policy: Policy, images: list[int], first: int, count: int
) -> Proposal:
    """Propose scales first..first+count-1 for images that are all at scale `first`.

    Args:
        state: its raw inputs of later scales and the draft's cache are written; nothing final changes.
        parts: the decoder's parts.
        policy: how the draft draws.
        images: one group.
        first: first scale to propose.
        count: number of scales, >= 1.

    Returns:
        The proposal, window of all `count` scales.

    Effects: draws as "draft"; raises the draft's cache lengths.
    """
    pyramid, request = state.pyramid, state.request
    f_hat = pick(state.f_hat_BCPP, images)
    tokens, probs = [], []
    for si in range(first, first + count):
        rows_RlV = forward_window(state, parts, state.draft, images, si, si).rows_RnV
        guided_blV = parts.guide(rows_RlV, pyramid, request.cfg, si, si)
        probs_blV = parts.filter_logits(guided_blV, request.top_k, request.top_p).softmax(-1)
        idx_bl = policy.propose(parts, probs_blV, Window(state.noise, pyramid, images, si, si, "draft"))
        tokens.append(idx_bl)
        probs.append(probs_blV)
        if si + 1 < pyramid.S:
            f_hat = parts.accumulate(f_hat, idx_bl, si, state.vae.quantizer, pyramid)
            state.raw_BLC[place(images, len(state.done)), pyramid.span(si + 1)] = parts.next_input(
                f_hat, si + 1, pyramid
            )
    return Proposal(torch.cat(tokens, 1), torch.cat(probs, 1))
