"""The one function that makes scales final.

Promise: after it the state of an image equals that of a sequential run over its final scales.
"""

from __future__ import annotations

from torch import Tensor

from harness.speculative.signatures import LatentParts
from harness.speculative.state import DecodeState, pick, place


def update_state_with_accepted_tokens(
    state: DecodeState,
    parts: LatentParts,
    images: list[int],
    first: int,
    tokens_by_scale: list[Tensor],
    finished: list[int],
) -> None:
    """Make scales first..first+finished-1 of every image final, and roll both caches back to them.

    Args:
        state: changed in place: tokens, f_hat, the next raw input, caches, done.
        parts: of which accumulation and next input are used.
        images: of one group, all at scale `first`.
        first: scale that the round began at.
        tokens_by_scale: final tokens (b,l) of every scale of the window, for the images of the group.
        finished: number of scales that each image of the group finishes.

    Effects: in place. A cache's entries of a scale depend on the scales before it alone, so those of the last final
    scale stay valid even where its tokens were corrected.
    """
    pyramid = state.pyramid
    groups = [[k for k, count in enumerate(finished) if count > offset] for offset in range(max(finished))]
    chosen = [[images[k] for k in group] for group in groups]
    for offset, group in enumerate(groups):
        rows = place(chosen[offset], len(state.done))
        state.tokens_BL[rows, pyramid.span(first + offset)] = pick(tokens_by_scale[offset], group)
        state.writes_BS[rows, first + offset] += 1
    # every mixture of counts would be a recording of its own
    key = ("update", first, finished[0]) if len(set(finished)) == 1 else ()
    f_hats = state.run(images, key, accumulate_scales, state, parts, first, chosen)
    if state.intermediates is not None:
        for offset, f_hat in enumerate(f_hats):
            state.intermediates.f_hat_SBCPP[first + offset, place(chosen[offset], len(state.done))] = f_hat
    for image, count in zip(images, finished, strict=True):
        state.done[image] = first + count
        for side in (state.draft, state.target):
            side.cache.rollback(image, pyramid.begin(first + count))


def accumulate_scales(state: DecodeState, parts: LatentParts, first: int, chosen: list[list[int]]) -> list[Tensor]:
    """Add scales from `first` on to f_hat, each of the images chosen for it; return f_hat after each. Device work."""
    pyramid, f_hats = state.pyramid, []
    for si, images in enumerate(chosen, first):
        rows = place(images, len(state.done))
        idx_bl = pick(state.tokens_BL[:, pyramid.span(si)], images)
        f_hats.append(parts.accumulate(pick(state.f_hat_BCPP, images), idx_bl, si, state.vae.quantizer, pyramid))
        state.f_hat_BCPP[rows] = f_hats[-1]
        if si + 1 < pyramid.S:
            state.raw_BLC[rows, pyramid.span(si + 1)] = parts.next_input(f_hats[-1], si + 1, pyramid)
    return f_hats
