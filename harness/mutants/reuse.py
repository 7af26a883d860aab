"""Planted bugs of reuse: what one decode leaves to the next, and what only happens while nothing is kept."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness.decoders import Factory
from harness.models.network import Condition
from harness.mutants._mutant import Alone, Mutant, of_class, patched, result_of, wrapped
from harness.protocol import Noise, Request, Trace
from harness.speculative import DecodeState, Side
from harness.speculative.sampler import SpeculativeDecoder

_RECORD = "harness.speculative._round:record_round"


def _by_set(self: Side) -> Condition:
    known: dict[Any, Condition] = vars(self.network).setdefault("conditions", {})
    key = (len(self.labels_B), *self.labels_B.unique().tolist())
    if key not in known:
        known[key] = self.make_condition(self.network, self.labels_B)
    return known[key]


def _beginning(change: Callable[[dict[Any, Any], DecodeState], None]) -> Factory:
    """Plant a bug in what a decode begins with: (what the decoder keeps from one to the next, state)."""

    class Beginning(SpeculativeDecoder):
        def begin(self, request: Request, noise: Noise) -> DecodeState:
            state = super().begin(request, noise)
            change(vars(self).setdefault("kept", {}), state)
            return state

    return of_class(Beginning)


def _stale_condition(*sides: str) -> Factory:
    def changed(kept: dict[Any, Any], state: DecodeState) -> None:
        for name in sides:
            side = getattr(state, name)
            vars(side)["condition"] = kept.setdefault((name, state.request.B), side.condition)

    return _beginning(changed)


def _kept_labels(kept: dict[Any, Any], state: DecodeState) -> None:
    if state.request.labels is None:
        state.draft.labels_B = state.target.labels_B = kept.setdefault(state.request.B, state.target.labels_B)


def _last_class_lost(kept: dict[Any, Any], state: DecodeState) -> None:
    if state.request.labels is None:
        for side in (state.draft, state.target):
            side.labels_B = side.labels_B.clamp_max(side.network.config.classes - 2)


def _stale_lengths(kept: dict[Any, Any], state: DecodeState) -> None:
    before = kept.get("lengths", [])
    if len(before) == state.request.B:
        state.draft_lens = before
    kept["lengths"] = state.draft_lens


def _first(*names: str) -> Factory:
    def around(decoder: SpeculativeDecoder, request: Request, noise: Noise) -> Trace:
        first = vars(decoder).setdefault("first_of_all", {name: getattr(request, name) for name in names})
        return decoder.decode(replace(request, **first), noise)

    return wrapped(around)


def _same_noise(decoder: SpeculativeDecoder, request: Request, noise: Noise) -> Trace:
    noises = vars(decoder).setdefault("kept_noise", {})
    return decoder.decode(request, noises.setdefault((request.B, request.order), noise))


def _remembered(decoder: SpeculativeDecoder, request: Request, noise: Noise) -> Trace:
    known = vars(decoder).setdefault("known", {})
    key = (request.labels, request.seed, request.images, request.order)
    if key not in known:
        known[key] = decoder.decode(request, noise)
    trace: Trace = known[key]
    return replace(trace, tokens_BL=trace.tokens_BL.clone(), f_hat_BCPP=trace.f_hat_BCPP.clone())


def _unkept(place: str, change: Callable[..., Any]) -> Factory:
    """Plant a change of what a function of a state returns, while no tensors are kept."""

    def changed(result: Any, state: DecodeState, *arguments: Any) -> Any:
        return result if state.intermediates is not None else change(result, state, *arguments)

    return patched(result_of(place, changed))


def _last_lost(scales: Any, state: DecodeState, parts: Any, first: int, chosen: list[list[int]]) -> Any:
    if first + len(chosen) == state.pyramid.S:
        state.f_hat_BCPP.mul_(0.5)
    return scales


# fmt: off
STALE_CONDITION = Mutant("reuse.stale-condition", "the condition is that of an earlier batch of the same size",
    "a cache keyed by the batch size", _stale_condition("draft", "target"), component="condition")
STALE_DRAFT = Alone("reuse.stale-draft", "the draft's condition is that of an earlier batch of the same size",
    "a cache keyed by the batch size, which no token shows", _stale_condition("draft"))
STALE_LENGTHS = Mutant("reuse.stale-lengths", "dynamic draft lengths outlive a decode",
    "a list made in the constructor", _beginning(_stale_lengths))
FIRST_CFG = Mutant("reuse.first-cfg", "the first request's guidance value holds for good",
    "a constant of a recorded pass", _first("cfg"), component="guidance")
FIRST_FILTER = Mutant("reuse.first-filter", "the first request's filter holds for good",
    "a constant of a recorded pass", _first("top_k", "top_p"))
SAME_NOISE = Mutant("reuse.same-noise", "a batch size keeps the numbers that it first met",
    "static buffers, never refilled", wrapped(_same_noise), component="condition")
REMEMBERED = Mutant("reuse.remembered", "a decode is looked up by labels and seed alone",
    "a cache key that forgets settings", wrapped(_remembered))
UNKEPT_BONUS = Alone("reuse.unkept-bonus", "without kept tensors bonus tokens are not counted",
    "a count inside `if keep`", _unkept(_RECORD, lambda turn, *of: replace(turn, bonus_tokens=0)))
UNKEPT_F_HAT = Alone("reuse.unkept-f-hat", "without kept tensors the final f_hat is halved",
    "a buffer that only a diagnosis copies", _unkept("harness.speculative._state:accumulate_scales", _last_lost))
UNKEPT_COUNTS = Alone("reuse.unkept-counts", "without kept tensors corrected tokens count as accepted",
    "two paths of one count", _unkept(_RECORD, lambda turn, *of: replace(
        turn, corrected_tokens=0, accepted_tokens=turn.accepted_tokens + turn.corrected_tokens)))
CONDITION_SET = Mutant("reuse.condition-set", "the condition is kept on the network by the set of labels",
    "a memo whose key is sorted", patched({"harness.speculative._state:Side.condition": property(_by_set)}))
KEPT_LABELS = Alone("reuse.kept-labels", "labels are drawn once for a batch size", "a memo by shape",
    _beginning(_kept_labels))
LAST_CLASS_LOST = Alone("reuse.last-class-lost", "drawn labels never name the last class",
    "randint's end taken off twice", _beginning(_last_class_lost))
