"""Verification: the large network computes several scales in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.speculative.parts import Parts
from harness.speculative.state import DecodeState, Side, pick


@dataclass(frozen=True)
class Pass:
    """One forward pass: inputs x_RmD of every position computed, and logits rows_RnV of the scales asked for."""

    x_RmD: Tensor
    rows_RnV: Tensor


def forward_window(state: DecodeState, parts: Parts, side: Side, images: list[int], first: int, last: int) -> Pass:
    """Run one network up to scale `last` and return the logits of scales first..last.

    The pass starts behind what the network's cache holds, which may be before `first` (after a bonus scale, say).

    Effects: extends the side's cache and raises its lengths; counts the call and its rows.
    """
    pyramid, network = state.pyramid, side.network
    cache = side.cache.window(images)
    begin = pyramid.level_of(cache.start)
    condition = side.condition_of(images)
    raw_bmC = pick(state.raw_BLC, images)[:, pyramid.begin(begin) : pyramid.end(last)]
    mask = parts.attention_mask(pyramid, begin, last, network.device, network.dtype) if begin < last else None

    def compute() -> tuple[Tensor, Tensor]:
        x_RmD = parts.build_combined_query(network, condition, raw_bmC, begin, last)
        hidden_RmD = network.hidden(x_RmD, condition, cache, mask)
        hidden_RnD = hidden_RmD[:, pyramid.begin(first) - pyramid.begin(begin) :]
        return x_RmD, network.logits(hidden_RnD, condition)

    graphed = side.graphs is not None and len(images) == len(side.calls)
    x_RmD, rows_RnV = side.graphs.run((begin, first, last), compute) if side.graphs and graphed else compute()
    cache.commit(pyramid.end(last))
    for image in images:
        side.calls[image] += 1
        side.rows[image] += pyramid.end(last) - pyramid.begin(begin)
    return Pass(x_RmD, rows_RnV)


@dataclass(frozen=True)
class Verified:
    """What the target says of scales first..last: laws by scale, and the tensors that a defect is traced with."""

    x_RnD: Tensor
    rows_RnV: Tensor
    guided_bnV: Tensor
    probs_by_scale: list[Tensor]


def target_verify_batch(state: DecodeState, parts: Parts, images: list[int], first: int, last: int) -> Verified:
    """Compute the target's law of scales first..last in one pass, each given the inputs of the scales before.

    Effects: as `forward_window` on the target.
    """
    pyramid, request = state.pyramid, state.request
    done = forward_window(state, parts, state.target, images, first, last)
    guided_bnV = parts.guide(done.rows_RnV, pyramid, request.cfg, first, last)
    probs_bnV = parts.filter_logits(guided_bnV, request.top_k, request.top_p).softmax(-1)
    n = done.rows_RnV.shape[1]
    return Verified(
        done.x_RmD[:, -n:], done.rows_RnV, guided_bnV, parts.split_logits_by_scale(probs_bnV, pyramid, first, last)
    )


def keep_intermediates(
    state: DecodeState, images: list[int], first: int, finished: list[int], verified: Verified
) -> None:
    """Write the pass's tensors of the scales that it made final into the state's intermediates."""
    kept, pyramid, B = state.intermediates, state.pyramid, len(state.done)
    if kept is None:
        return
    begin = pyramid.begin(first)
    for offset in range(max(finished)):
        group = [k for k, count in enumerate(finished) if count > offset]
        rows_b = torch.tensor([images[k] for k in group])
        rows_R = torch.cat((rows_b, B + rows_b))
        from_R = torch.tensor(group + [len(images) + k for k in group])
        span = pyramid.span(first + offset)
        window = slice(span.start - begin, span.stop - begin)
        kept.x_RLD[rows_R, span] = verified.x_RnD[from_R, window]
        kept.rows_RLV[rows_R, span] = verified.rows_RnV[from_R, window]
        kept.guided_BLV[rows_b, span] = verified.guided_bnV[group, window]
