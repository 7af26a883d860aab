"""One round: draft, verify, accept, update.

Promise: a round finishes at least one scale of every image that it touches, and waits for the device once, where the
target judges a draft, or not at all. It gives the device four kinds of work: `propose_scale`, `verify_and_accept`,
`decide_scale` and the update's, each a function of the state's tensors, which `DecodeState.run` launches or replays.
A forward pass of one network over a window, and the work that begins with it, are one piece for the device, launched or
replayed; caches and counts are the host's, and the same either way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar, TypeVarTuple

import torch
from torch import Tensor

from harness.models.network import Condition
from harness.speculative._accept import (
    Decision,
    Policy,
    Verified,
    Window,
    decided_outcome,
    drafted_proposal,
    fetch_outcome,
    finite_flag,
    keep_intermediates,
    record_round,
    round_numbers,
    trusted_outcome,
)
from harness.speculative._state import CacheWindow, DecodeState, Side, place
from harness.speculative.parts import Parts

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True)
class Pass:
    side: Side  # whose
    window: Window  # scales whose logits are asked for
    begin: int  # first scale computed, that after what the cache holds; before the window's after a bonus scale, say
    condition: Condition  # of the window's images
    cache: CacheWindow  # their slots
    mask_11nK: Tensor | None  # None where everything is visible
    positions: Tensor | None  # where its rows sit (`Parts.positions`)


def forward_window(
    state: DecodeState, parts: Parts, side: Side, window: Window, work: Callable[[DecodeState, Parts, Pass, *Ts], T],
    *given: *Ts,
) -> T:  # fmt: skip
    """Run one network up to the window's last scale; return what the work returns.

    The device work is `forward`, or a function that begins with it; what more it is `given` is hashable, and equal
    arguments must mean equal work.

    Effects: extends the side's cache and raises its lengths; counts the call and its rows; those of the work.
    """
    pyramid, images, network = state.pyramid, window.images, side.network
    cache = side.cache.window(images)
    begin, end = pyramid.level_of(cache.start), pyramid.end(window.last)
    condition, mask = side.condition_of(images), None
    if begin < window.last:
        mask = parts.attention_mask(pyramid, begin, window.last, network.device, network.dtype)
    this = Pass(side, window, begin, condition, cache, mask, parts.positions(network, begin, window.last))
    key = (side.name, begin, window.first, window.last, work, *given)
    result = state.run(images, key, work, state, parts, this, *given)
    cache.commit(end)
    for image in images:
        side.calls[image] += 1
        side.rows[image] += end - pyramid.begin(begin)
    return result


def forward(state: DecodeState, parts: Parts, this: Pass) -> tuple[Tensor, Tensor]:
    """Return inputs x_RnD and logits rows_RnV of the window's scales. Device work."""
    pyramid, network, window = state.pyramid, this.side.network, this.window
    raw_bmC = window.pick(state.raw_BLC)[:, pyramid.begin(this.begin) : pyramid.end(window.last)]
    x_RmD = parts.build_combined_query(network, this.condition, raw_bmC, this.begin, window.last)
    hidden_RmD = network.hidden(x_RmD, this.condition, this.cache, this.mask_11nK, this.positions)
    window_n = slice(pyramid.begin(window.first) - pyramid.begin(this.begin), None)
    return x_RmD[:, window_n], network.logits(hidden_RmD[:, window_n], this.condition)


def run_round(state: DecodeState, parts: Parts, policy: Policy, window: Window, bonus: bool) -> None:
    """Take one group of images through a round. Effects: on the state.

    The window's scales are drafted, and all verified by the target or all decided by the draft alone (`Policy.reach`);
    none where the target decides `window.first` alone: that is then the scale after them. `bonus` lets the target
    finish the scale after them, too, where it is one that the target decides.
    """
    before = [(state.target.rows[image], state.draft.rows[image]) for image in window.images]
    count, keep = len(window.scales), state.intermediates is not None
    if count:
        draft_generate_batch(state, parts, policy, window)
    if policy.trusts(window.first):
        outcome = trusted_outcome(state, window, drafted_proposal(state, window))
    elif not count:
        alone = replace(window, last=window.first)
        decision = forward_window(state, parts, state.target, alone, decide_scale, policy, keep)
        outcome = decided_outcome(state, decision, window)
        keep_intermediates(state, window, outcome, decision.verified)
    else:
        after = window.last + 1
        bonus = bonus and after < state.pyramid.S and not policy.trusts(after)
        submitted = replace(window, last=window.last + bonus)
        decision = forward_window(state, parts, state.target, submitted, verify_and_accept, policy, count, keep)
        outcome = fetch_outcome(decision, window, bonus)
        keep_intermediates(state, window, outcome, decision.verified)
    tokens, finished = outcome.tokens_by_scale, outcome.finished
    parts.update_state_with_accepted_tokens(state, parts, window.images, window.first, tokens, finished)
    for k, image in enumerate(window.images):
        state.rounds[image].append(record_round(state, window, outcome, k, before[k]))


def draft_generate_batch(state: DecodeState, parts: Parts, policy: Policy, window: Window) -> None:
    """Let the draft propose the window's scales, one after the other; `drafted_proposal` reads what it proposes.

    Effects: writes the state's drafted tensors, its raw inputs of later scales and the draft's cache; nothing final
    changes. Draws as "draft". Whether logits are finite that nobody will judge is asked when the decode ends.
    """
    state.drafted_f_hat_BCPP[place(window.images, len(state.done))] = window.pick(state.f_hat_BCPP)
    for si in window.scales:
        step = replace(window, first=si, last=si, reader="draft")
        if (is_finite := forward_window(state, parts, state.draft, step, propose_scale, policy)) is not None:
            state.unchecked.append(("draft", si, is_finite.clone()))


def propose_scale(state: DecodeState, parts: Parts, this: Pass, policy: Policy) -> Tensor | None:
    """Draw a scale by the draft and prepare the next input; return whether logits that nobody judges are finite."""
    pyramid, window, si = state.pyramid, this.window, this.window.first
    rows = place(window.images, len(state.done))
    _, rows_RlV = forward(state, parts, this)
    _, probs_blV = _law(state, parts, rows_RlV, window)
    idx_bl = policy.propose(parts, probs_blV, window)
    state.drafted_tokens_BL[rows, window.span] = idx_bl
    state.drafted_probs_BLV[rows, window.span] = probs_blV
    if si + 1 < pyramid.S:
        f_hat = parts.accumulate(window.pick(state.drafted_f_hat_BCPP), idx_bl, si, state.vae.quantizer, pyramid)
        state.drafted_f_hat_BCPP[rows] = f_hat
        state.raw_BLC[rows, pyramid.span(si + 1)] = parts.next_input(f_hat, si + 1, pyramid)
    return finite_flag(rows_RlV) if policy.trusts(si) else None


def decide_scale(state: DecodeState, parts: Parts, this: Pass, policy: Policy, keep: bool) -> Decision:
    """Draw one scale that was not drafted from the target's law. Device work."""
    verified = target_verify_batch(state, parts, this)
    tokens_bl = policy.extend(parts, verified.probs_by_scale[0], this.window)
    return Decision([tokens_bl], finite_flag(verified.rows_RnV), verified if keep else None)


def target_verify_batch(state: DecodeState, parts: Parts, this: Pass) -> Verified:
    """Return the target's laws of the window's scales, each given the inputs of those before. Device work."""
    window = this.window
    x_RnD, rows_RnV = forward(state, parts, this)
    guided_bnV, probs_bnV = _law(state, parts, rows_RnV, window)
    by_scale = parts.split_logits_by_scale(probs_bnV, state.pyramid, window.first, window.last)
    return Verified(x_RnD, rows_RnV, guided_bnV, by_scale)


def _law(state: DecodeState, parts: Parts, rows_RnV: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Return guided_bnV and the law probs_bnV that tokens are drawn from."""
    request = state.request
    guided_bnV = parts.guide(rows_RnV, state.pyramid, request.guidance, window.first, window.last)
    filters = [request.filter(si) for si in window.scales]
    if len(set(filters)) == 1:
        return guided_bnV, parts.filter_logits(guided_bnV, *filters[0]).softmax(-1)
    scales = zip(window.split(guided_bnV), filters, strict=True)
    return guided_bnV, torch.cat([parts.filter_logits(guided_blV, *each) for guided_blV, each in scales], 1).softmax(-1)


def verify_and_accept(state: DecodeState, parts: Parts, this: Pass, policy: Policy, count: int, keep: bool) -> Decision:
    """Judge `count` drafted scales by the target's laws, and draw the one after them if it was submitted. Device work.

    Of every scale there is what it becomes if it is the first imperfect one, or accepted; `verified` if `keep`.
    """
    verified = target_verify_batch(state, parts, this)
    window = replace(this.window, last=this.window.first + count - 1)
    proposal = drafted_proposal(state, window)
    judged = policy.accept(parts, proposal, torch.cat(verified.probs_by_scale[:count], 1), window)
    if judged.law_bnV is not None:
        verified = replace(verified, probs_by_scale=[*window.split(judged.law_bnV), *verified.probs_by_scale[count:]])
    tokens = judged.tokens_by_scale(proposal, window)
    if this.window.last > window.last:
        after = replace(window, first=this.window.last, last=this.window.last)
        tokens.append(policy.extend(parts, verified.probs_by_scale[count], after))
    return Decision(tokens, round_numbers(judged, verified.rows_RnV, window), verified if keep else None)
