"""What a planted bug is, and the ways of planting one.

Promise: a mutant is the production decoder with one part, one rule or one source of numbers replaced; nothing else
changes. It is a factory, so `--implementation harness.mutants.masks:CORNER` names one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pkgutil import resolve_name
from typing import Any
from unittest import mock

from torch import Tensor

from harness.decoders import Factory
from harness.laws import forget_models
from harness.models import ModelPair
from harness.protocol import Implementation, Noise, NoiseBefore, Reading, Request, Round, SeededNoise, Settings, Trace
from harness.speculative import Acceptance, DecodeState, KVCache, Policy, Proposal, Window, parse_policy
from harness.speculative.parts import PARTS, Parts
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder


def production(models: ModelPair, settings: Settings, used: Parts = PARTS) -> SpeculativeDecoder:
    """Build the decoder without a bug, or composed of other parts."""
    return SpeculativeDecoder(models, options_of(settings), used)


def options_of(settings: Settings) -> DecoderOptions:
    return DecoderOptions(settings.draft_len, settings.bonus, parse_policy(settings.policy))


@dataclass(frozen=True)
class Mutant:
    id: str  # family of the laws that must catch it, and a word
    change: str  # what it does differently, one clause
    origin: str  # where such a bug comes from, one clause
    build: Factory = field(default=production, repr=False)  # the decoder with the bug, where that is not `shared`
    alone: bool = False  # True when no law of another family may catch it
    component: str = ""  # what `verify` must point to; empty where the bug is the laws' alone to find, or to place
    # "module:name" -> what stands there instead, for a bug in code that decoder and reference share: it is planted
    # for both while the laws or `verify` run
    shared: Mapping[str, object] = field(default_factory=dict, repr=False)

    @property
    def family(self) -> str:
        return self.id.partition(".")[0]

    def __call__(self, models: ModelPair, settings: Settings) -> Implementation:
        return self.build(models, settings)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant what is shared, for as long as the context lasts. Effects: networks are made anew."""
        with replaced(self.shared):
            if self.shared:
                forget_models()
            yield
        if self.shared:
            forget_models()


Alone = partial(Mutant, alone=True)  # no law of another family may catch it


@contextmanager
def replaced(targets: Mapping[str, object]) -> Iterator[None]:
    """Put other things in the places of attributes ("module:name" or "module:Class.name") for a while."""
    with ExitStack() as stack:
        for place, thing in targets.items():
            stack.enter_context(mock.patch(place.replace(":", "."), thing))
        yield


def of_class(decoder: type[SpeculativeDecoder]) -> Factory:
    """Plant a bug in methods of the decoder."""
    return lambda models, settings: decoder(models, options_of(settings))


def patched(targets: Mapping[str, object]) -> Factory:
    """Plant a bug in a function that is no part: "module:name" -> what stands there while the decoder decodes."""

    class Patched(SpeculativeDecoder):
        def decode(self, request: Request, noise: Noise) -> Trace:
            with replaced(targets):
                return super().decode(request, noise)

    return of_class(Patched)


def parts(**replaced: Any) -> Factory:
    """Plant a bug by replacing parts (`harness.speculative.parts`)."""
    return partial(production, used=replace(PARTS, **replaced))


def returning(true: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose result is another: `change` is given the true one, and the arguments."""
    return lambda *arguments: change(true(*arguments), *arguments)


def given(true: Callable[..., Any], change: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """Return a function that is given other arguments than it is called with: `change` makes these of those."""
    return lambda *arguments: true(*change(*arguments))


def returned(**changes: Callable[..., Any]) -> Factory:
    """Plant a bug in what parts return, as `returning` does."""
    return parts(**{name: returning(getattr(PARTS, name), change) for name, change in changes.items()})


def passed(**changes: Callable[..., tuple[Any, ...]]) -> Factory:
    """Plant a bug in what parts are given, as `given` does."""
    return parts(**{name: given(getattr(PARTS, name), change) for name, change in changes.items()})


def result_of(place: str, change: Callable[..., Any]) -> dict[str, object]:
    """Return what `patched` puts at a place: a function that returns something else, as `returning` does."""
    return {place: returning(resolve_name(place), change)}


def arguments_of(place: str, change: Callable[..., tuple[Any, ...]]) -> dict[str, object]:
    """Return what `patched` puts at a place: a function that is given something else, as `given` does."""
    return {place: given(resolve_name(place), change)}


def caching(**methods: Callable[..., Any]) -> Factory:
    """Plant a cache of which some methods are others."""
    return parts(new_cache=type("Planted", (KVCache,), methods))


def updating(change: Callable[[DecodeState, int, int, int, int], None]) -> Factory:
    """Plant what else a round does to an image: (state, image, first scale, scales finished, scales tried)."""

    def changed(_: None, state: DecodeState, used: Parts, images: list[int], first: int, *of: list[Any]) -> None:
        tokens, finished = of
        for image, count in zip(images, finished, strict=True):
            change(state, image, first, count, len(tokens))

    return returned(update_state_with_accepted_tokens=changed)


def policy(change: Callable[[Policy], Policy]) -> Factory:
    """Plant a bug in the acceptance policy: the one that the settings name, changed."""

    def build(models: ModelPair, settings: Settings) -> Implementation:
        options = options_of(settings)
        return SpeculativeDecoder(models, replace(options, policy=change(options.policy)))

    return build


def judgement(change: Callable[[Acceptance, Proposal, Window], Acceptance]) -> Factory:
    """Plant a bug in the judgement of whichever rule is in force."""

    def changed(judged: Acceptance, used: Parts, proposal: Proposal, probs_bnV: Tensor, window: Window) -> Acceptance:
        return change(judged, proposal, window)

    return policy(lambda true: replace(true, accept=returning(true.accept, changed)))


@dataclass(frozen=True)
class _Wrapped:
    """The production decoder inside something that changes what goes in or comes out."""

    inner: SpeculativeDecoder
    around: Callable[[SpeculativeDecoder, Request, Noise], Trace]

    @property
    def contract(self) -> str:
        return self.inner.contract

    @property
    def policy(self) -> str:
        return self.inner.policy

    def decode(self, request: Request, noise: Noise) -> Trace:
        return self.around(self.inner, request, noise)


def wrapped(around: Callable[[SpeculativeDecoder, Request, Any], Trace]) -> Factory:
    """Plant a bug around the whole decode; the decoder then exposes no parts."""
    return lambda models, settings: _Wrapped(production(models, settings), around)


def reporting(change: Callable[[Trace], None]) -> Factory:
    """Plant a bug in what a decode says of itself: a change of its trace."""

    def around(decoder: SpeculativeDecoder, request: Request, noise: Noise) -> Trace:
        trace = decoder.decode(request, noise)
        change(trace)
        return trace

    return wrapped(around)


def telling(change: Callable[[Round], Round]) -> Factory:
    """Plant a bug in what every round says of itself, and in the sums of its target rows."""

    def changed(trace: Trace) -> None:
        trace.rounds = [[change(turn) for turn in rounds] for rounds in trace.rounds]
        trace.target_rows = [sum(turn.target_rows for turn in rounds) for rounds in trace.rounds]

    return reporting(changed)


_Change = Callable[[Tensor, int, str, str], Tensor]  # (numbers, scale, stream, reader) -> numbers


def numbered(change: Callable[[SpeculativeDecoder, Request, SeededNoise], _Change]) -> Factory:
    """Plant a bug in the numbers that a decode is given: (decoder, request, noise) -> change of every reading."""

    def around(decoder: SpeculativeDecoder, request: Request, noise: SeededNoise) -> Trace:
        changed = change(decoder, request, noise)

        class Tampered(NoiseBefore):
            def read(self, numbers: Reading, *at: Any) -> Tensor:
                return changed(numbers(*at), *at)

        return decoder.decode(request, Tampered(noise))

    return wrapped(around)


def asked_for(**changes: Any) -> Factory:
    """Plant a bug that decodes another request, with that request's numbers; a change may be a function of it."""

    def around(decoder: SpeculativeDecoder, request: Request, noise: SeededNoise) -> Trace:
        changed = {name: change(request) if callable(change) else change for name, change in changes.items()}
        other = replace(request, **changed)
        models = decoder.models
        own = SeededNoise(other, models.pyramid, models.target.config.V, models.device, noise.ledger)
        return decoder.decode(other, own)

    return wrapped(around)


def labelled(change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Factory:
    """Plant a bug that decodes other labels than those that are given; labels that are drawn it leaves alone."""
    return asked_for(labels=lambda request: request.labels and change(request.labels))
