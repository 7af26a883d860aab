"""Planted bugs of reuse: what one decode leaves to the next, and what only happens while nothing is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness.decoders import Factory
from harness.models.network import Condition
from harness.mutants._mutant import Mutant, options_of, patched
from harness.protocol import Request, Round, Trace
from harness.protocol.noise import Noise, SeededNoise
from harness.speculative import DecodeState, Side, accumulate_scales, record_round
from harness.speculative.sampler import SpeculativeDecoder

_ACCUMULATE = accumulate_scales


def _by_set(self: Side) -> Condition:
    """Remember the condition of a set of labels on the network, in the order in which they were first met."""
    known: dict[Any, Condition] = vars(self.network).setdefault("conditions", {})
    key = (len(self.labels_B), *self.labels_B.unique().tolist())
    if key not in known:
        known[key] = self.make_condition(self.network, self.labels_B)
    return known[key]


def _decoder(kind: type[SpeculativeDecoder]) -> Factory:
    return lambda models, settings: kind(models, options_of(settings))


class _StaleCondition(SpeculativeDecoder):
    """Compute the condition of a batch size once."""

    sides: tuple[str, ...] = ("draft", "target")

    def begin(self, request: Request, noise: Noise) -> DecodeState:
        """Take the condition of an earlier decode of as many images."""
        state = super().begin(request, noise)
        conditions = self.__dict__.setdefault("kept_conditions", {})
        for name in self.sides:
            side = getattr(state, name)
            side.__dict__["condition"] = conditions.setdefault((name, request.B), side.condition)
        return state


class _StaleDraftCondition(_StaleCondition):
    """Do so for the draft alone: the tokens stay right."""

    sides = ("draft",)


class _KeptLabels(SpeculativeDecoder):
    """Draw labels once for a batch size."""

    def begin(self, request: Request, noise: Noise) -> DecodeState:
        """Take labels that were drawn for an earlier request."""
        state = super().begin(request, noise)
        if request.labels is None:
            labels_B = self.__dict__.setdefault("drawn", {}).setdefault(request.B, state.target.labels_B)
            state.draft.labels_B = state.target.labels_B = labels_B
        return state


class _LastClassLost(SpeculativeDecoder):
    """Never draw the last class."""

    def begin(self, request: Request, noise: Noise) -> DecodeState:
        """Take the class before it."""
        state = super().begin(request, noise)
        if request.labels is None:
            last = self.models.target.config.classes - 2
            for side in (state.draft, state.target):
                side.labels_B = side.labels_B.clamp_max(last)
        return state


class _StaleLengths(SpeculativeDecoder):
    """Go on with the dynamic draft lengths of the decode before."""

    def begin(self, request: Request, noise: Noise) -> DecodeState:
        """Hand the lengths on where there are as many images."""
        state = super().begin(request, noise)
        before = self.__dict__.get("lengths_before", [])
        if len(before) == request.B:
            state.draft_lens = before
        self.__dict__["lengths_before"] = state.draft_lens
        return state


def _first(*names: str) -> type[SpeculativeDecoder]:
    """Return a decoder that keeps some parameters of its first request."""

    class First(SpeculativeDecoder):
        """Decode every request with the first one's parameters."""

        def decode(self, request: Request, noise: Noise) -> Trace:
            """Decode another request than the one asked for."""
            first = self.__dict__.setdefault("first_of_all", {name: getattr(request, name) for name in names})
            return super().decode(replace(request, **first), noise)

    return First


class _SameNoise(SpeculativeDecoder):
    """Keep the numbers of the first request of a batch size."""

    def decode(self, request: Request, noise: Noise) -> Trace:
        """Decode with numbers that were read before."""
        noises = self.__dict__.setdefault("kept_noise", {})
        return super().decode(request, noises.setdefault((request.B, request.order), noise))


class _Remembered(SpeculativeDecoder):
    """Answer from memory where labels and seed are known."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:  # type: ignore[override]
        """Return an earlier trace."""
        known = self.__dict__.setdefault("known", {})
        key = (request.labels, request.seed, request.images, request.order)
        if key not in known:
            known[key] = super().decode(request, noise)
        trace: Trace = known[key]
        return replace(trace, tokens_BL=trace.tokens_BL.clone(), f_hat_BCPP=trace.f_hat_BCPP.clone())


def _unkept(change: Callable[..., Any], true: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a state that is another one while no tensors are kept."""
    return lambda state, *args: (true if state.intermediates is not None else change)(state, *args)


def _one_round_less(state: DecodeState, *args: Any) -> Round:
    return replace(record_round(state, *args), bonus_tokens=0)


def _last_lost(state: DecodeState, parts: Any, first: int, chosen: list[list[int]]) -> Any:
    scales = _ACCUMULATE(state, parts, first, chosen)
    if first + len(chosen) == state.pyramid.S:
        state.f_hat_BCPP.mul_(0.5)
    return scales


def _rows_forgotten(state: DecodeState, *args: Any) -> Round:
    turn = record_round(state, *args)
    return replace(turn, corrected_tokens=0, accepted_tokens=turn.accepted_tokens + turn.corrected_tokens)


STALE_CONDITION = Mutant("reuse.stale-condition", "the condition is that of an earlier batch of the same size",
    "a cache keyed by the batch size", _decoder(_StaleCondition), component="condition")  # fmt: skip
STALE_DRAFT = Mutant("reuse.stale-draft", "the draft's condition is that of an earlier batch of the same size",
    "a cache keyed by the batch size, which no token shows", _decoder(_StaleDraftCondition), alone=True)  # fmt: skip
STALE_LENGTHS = Mutant("reuse.stale-lengths", "dynamic draft lengths outlive a decode",
    "a list made in the constructor", _decoder(_StaleLengths))  # fmt: skip
FIRST_CFG = Mutant("reuse.first-cfg", "the first request's guidance value holds for good",
    "a constant of a recorded pass", _decoder(_first("cfg")), component="guidance")  # fmt: skip
FIRST_FILTER = Mutant("reuse.first-filter", "the first request's filter holds for good",
    "a constant of a recorded pass", _decoder(_first("top_k", "top_p")))  # fmt: skip
SAME_NOISE = Mutant("reuse.same-noise", "a batch size keeps the numbers that it first met",
    "static buffers, never refilled", _decoder(_SameNoise), component="condition")  # fmt: skip
REMEMBERED = Mutant("reuse.remembered", "a decode is looked up by labels and seed alone",
    "a cache key that forgets settings", _decoder(_Remembered))  # fmt: skip
UNKEPT_BONUS = Mutant(
    "reuse.unkept-bonus", "without kept tensors bonus tokens are not counted", "a count inside `if keep`",
    patched({"harness.speculative._round:record_round": _unkept(_one_round_less, record_round)}), alone=True,
)  # fmt: skip
UNKEPT_F_HAT = Mutant(
    "reuse.unkept-f-hat", "without kept tensors the final f_hat is halved", "a buffer that only a diagnosis copies",
    patched({"harness.speculative._state:accumulate_scales": _unkept(_last_lost, _ACCUMULATE)}), alone=True,
)  # fmt: skip
UNKEPT_COUNTS = Mutant(
    "reuse.unkept-counts", "without kept tensors corrected tokens count as accepted", "two paths of one count",
    patched({"harness.speculative._round:record_round": _unkept(_rows_forgotten, record_round)}), alone=True,
)  # fmt: skip
CONDITION_SET = Mutant("reuse.condition-set", "the condition is kept on the network by the set of labels",
    "a memo whose key is sorted",
    patched({"harness.speculative._state:Side.condition": property(_by_set)}))  # fmt: skip
KEPT_LABELS = Mutant("reuse.kept-labels", "labels are drawn once for a batch size", "a memo by shape",
    _decoder(_KeptLabels), alone=True)  # fmt: skip
LAST_CLASS_LOST = Mutant("reuse.last-class-lost", "drawn labels never name the last class",
    "randint's end taken off twice",
    _decoder(_LastClassLost), alone=True)  # fmt: skip
