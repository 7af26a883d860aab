"""Verification: the large network computes several scales in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.speculative.parts import Parts
from harness.speculative.state import DecodeState, Side, pick


@dataclass(frozen=True)
class Pass:
    """One forward pass: inputs x_RmD of every position computed, and logits rows_RnV of the scales asked for."""

    x_RmD: Tensor
    rows_RnV: Tensor


@dataclass(frozen=True)
class Step:
    """Device work behind a pass, recorded together with it.

    Args:
        name: equal names must mean equal work after the same pass.
        work: on what came before and the state's tensors, without a host synchronisation.
    """

    name: str
    work: Callable[[Any], Any]


def forward_window(
    state: DecodeState, parts: Parts, side: Side, images: list[int], first: int, last: int, then: Step
) -> Any:
    """Run one network up to scale `last`; return what `then` makes of the `Pass` with the logits of scales first..last.

    The pass starts behind what the network's cache holds, which may be before `first` (after a bonus scale, say).

    Effects: extends the side's cache and raises its lengths; counts the call and its rows; those of `then`.
    """
    pyramid, network = state.pyramid, side.network
    cache = side.cache.window(images)
    begin = pyramid.level_of(cache.start)
    condition = side.condition_of(images)
    mask = parts.attention_mask(pyramid, begin, last, network.device, network.dtype) if begin < last else None

    def compute() -> Any:
        raw_bmC = pick(state.raw_BLC, images)[:, pyramid.begin(begin) : pyramid.end(last)]
        x_RmD = parts.build_combined_query(network, condition, raw_bmC, begin, last)
        hidden_RmD = network.hidden(x_RmD, condition, cache, mask)
        hidden_RnD = hidden_RmD[:, pyramid.begin(first) - pyramid.begin(begin) :]
        return then.work(Pass(x_RmD, network.logits(hidden_RnD, condition)))

    result = state.run(images, (side.name, begin, first, last, then.name), compute)
    cache.commit(pyramid.end(last))
    for image in images:
        side.calls[image] += 1
        side.rows[image] += pyramid.end(last) - pyramid.begin(begin)
    return result


@dataclass(frozen=True)
class Verified:
    """What the target says of scales first..last: laws by scale, and the tensors that a defect is traced with."""

    x_RnD: Tensor
    rows_RnV: Tensor
    guided_bnV: Tensor
    probs_by_scale: list[Tensor]


LAWS = Step("laws", lambda verified: verified)


def target_verify_batch(
    state: DecodeState, parts: Parts, images: list[int], first: int, last: int, then: Step = LAWS
) -> Any:
    """Compute the target's law of scales first..last in one pass, each given the inputs of the scales before.

    Returns:
        What `then` makes of `Verified`; by default that itself.

    Effects: as `forward_window` on the target.
    """
    pyramid, request = state.pyramid, state.request

    def work(done: Pass) -> Any:
        guided_bnV = parts.guide(done.rows_RnV, pyramid, request.cfg, first, last)
        probs_bnV = parts.filter_logits(guided_bnV, request.top_k, request.top_p).softmax(-1)
        x_RnD = done.x_RmD[:, -done.rows_RnV.shape[1] :]
        by_scale = parts.split_logits_by_scale(probs_bnV, pyramid, first, last)
        return then.work(Verified(x_RnD, done.rows_RnV, guided_bnV, by_scale))

    return forward_window(state, parts, state.target, images, first, last, Step(then.name, work))


def keep_intermediates(
    state: DecodeState, images: list[int], first: int, finished: list[int], verified: Verified | None
) -> None:
    """Write the pass's tensors of the scales that it made final into the state's intermediates."""
    kept, pyramid, B = state.intermediates, state.pyramid, len(state.done)
    if kept is None or verified is None:
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
