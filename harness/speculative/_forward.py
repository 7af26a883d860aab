"""One forward pass of one network over a window of scales, and the device work that begins with it.

Promise: pass and work are one piece for the device, whether launched or replayed; caches and counts are the host's, and
the same either way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from torch import Tensor

from harness.models.network import Condition
from harness.speculative._accept import Window
from harness.speculative._cache import CacheWindow
from harness.speculative._state import DecodeState, Side
from harness.speculative.parts import Parts

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True)
class Pass:
    """A pass about to be made."""

    side: Side  # whose
    window: Window  # scales whose logits are asked for
    begin: int  # first scale computed, that after what the cache holds; before the window's after a bonus scale, say
    condition: Condition  # of the window's images
    cache: CacheWindow  # their slots
    mask_11nK: Tensor | None  # None where everything is visible
    positions: Tensor | None  # where its rows sit (`Parts.positions`)


def forward_window(
    state: DecodeState,
    parts: Parts,
    side: Side,
    window: Window,
    work: Callable[[DecodeState, Parts, Pass, *Ts], T],
    *given: *Ts,
) -> T:
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
