"""Planted bugs of the labour divided: the target decides the coarse scales alone, and the draft the fine ones."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from harness.mutants._mutant import Mutant, patched, policy
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import (
    DecodeState,
    Pass,
    Policy,
    Window,
    draft_generate_batch,
    forward,
    forward_window,
    most_likely,
    propose_scale,
    race_alone,
    run_round,
)
from harness.speculative.parts import PARTS, Parts

_ROUND = "harness.speculative._round:"


def _filled_short(state: DecodeState, parts: Parts, policy: Policy, window: Window) -> None:
    for image in window.images:
        if window.first and not state.draft.cache.lengths[image]:
            state.draft.cache.lengths[image] = state.pyramid.end(0)
    draft_generate_batch(state, parts, policy, window)


def _inputs_lost(state: DecodeState, parts: Parts, policy: Policy, window: Window) -> None:
    raw_before = state.raw_BLC.clone()
    if window.first and not state.draft.cache.lengths[window.images[0]]:
        state.raw_BLC[window.images, : window.span.start] = 0
    draft_generate_batch(state, parts, policy, window)
    state.raw_BLC[window.images, : window.span.start] = raw_before[window.images, : window.span.start]


def _restarted(state: DecodeState, parts: Parts, this: Pass, policy: Policy) -> None:
    def guide(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
        alone = not policy.speculates and first >= policy.entry > 0
        share = (first - policy.entry) / first if alone else 1.0
        return PARTS.guide(rows_RnV, pyramid, cfg * share, first, last)

    propose_scale(state, replace(parts, guide=guide), this, policy)


def _filled_along(state: DecodeState, parts: Parts, policy: Policy, window: Window, bonus: bool) -> None:
    if not window.scales:
        step = replace(window, last=window.first, reader="draft")
        forward_window(state, parts, state.draft, step, forward)
    run_round(state, parts, policy, window, bonus)


def _of_code(**changes: Any) -> Any:
    return policy(lambda true: true if true.speculates else replace(true, **changes))


FILLED_SHORT = Mutant("rules.filled-short", "the draft that takes over has never seen scale 0",
    "a cache taken for filled", patched({_ROUND + "draft_generate_batch": _filled_short}))  # fmt: skip
INPUTS_LOST = Mutant("rules.inputs-lost", "the draft that takes over fills its cache from empty inputs",
    "inputs that only drafts keep", patched({_ROUND + "draft_generate_batch": _inputs_lost}))  # fmt: skip
RESTARTED = Mutant("rules.restarted", "guidance begins at t = 0 again where the draft takes over",
    "an index counted from ENTRY", patched({_ROUND + "propose_scale": _restarted}))  # fmt: skip
OWN_STREAM = Mutant("rules.own-stream", "the draft that takes over draws with numbers of its own",
    "the stream of a rejection sampler", _of_code(propose=race_alone), alone=True)  # fmt: skip
TARGET_GREEDY = Mutant("rules.target-greedy", "the target that decides alone takes the most likely tokens",
    "a draw left out", _of_code(extend=most_likely))  # fmt: skip
DRAFTED_ANYWAY = Mutant("rules.drafted-anyway", "scales that the target decides alone are drafted all the same",
    "another policy's loop", _of_code(speculates=True))  # fmt: skip
FILLED_ALONG = Mutant("rules.filled-along", "the draft makes a pass for every scale that the target decides",
    "one loop for both", patched({"harness.speculative.sampler:run_round": _filled_along}), alone=True)  # fmt: skip
