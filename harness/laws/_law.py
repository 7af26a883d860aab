"""What a law is, what it is asked of, and how it says that it is broken.

Promise: checking a law ends in one of four ways: it held (and the example was trivial or not), it is broken
(`Violation`), it does not apply to this decoder (`NotOffered`), or the decoder refused the case (`InputError`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.decoders import Factory, OutOfTimeError, attribute_of, build_by_factory, crash_of
from harness.errors import HarnessError, InputError, StopSignal
from harness.judge import Broken, differences, made_plain, require
from harness.laws._case import Case, forget_models
from harness.models import ModelPair, checksums
from harness.protocol import (
    DECLINES,
    Contract,
    Implementation,
    Intermediates,
    Noise,
    Request,
    Round,
    Settings,
    Trace,
    declined,
)
from harness.signals import ctrl_c_is_a_stop

# Two float64 computations of one logit or f_hat (other window, other kernel) differ by some 1e-14 on these networks;
# the smallest planted bug moves them by more than 1e-4. tests/meta/test_tolerances.py measures the first number.
FLOAT64 = 1e-10

NO_PARTS = "the decoder has no `parts`, the functions that this law calls (docs/laws.md)"
PLAIN = ("coupled", "rejection")  # what every decoder may be asked for
EXACT = ("coupled", "greedy")
LOSSY = ("match", "coupled-match", "topk-match", "kl", "handoff", "collaborative", "code", "middle")
EVERY = (*EXACT, "rejection", *LOSSY)
KEEPS_AN_EQUAL = ("coupled", "greedy", "rejection", "coupled-match", "kl", "handoff", "collaborative", "code", "middle")
_HOLDS = {Contract.TOKENS: EXACT, Contract.LAW: (*EXACT, "rejection"), Contract.QUALITY: EVERY}


def policy_name(text: str) -> str:
    """Return a policy's name without its numbers."""
    return text.partition("+")[0].partition(":")[0]


class Violation(HarnessError):  # noqa: N818
    """A law is broken, by one clause; the message fits on one screen and holds the case to replay.

    `factory` is the decoder as the printed replay names it; `part` is the one that was found, `crash` where it raised.
    """

    def __init__(
        self, law: Law, case: Case, found: str, factory: str = "FACTORY",
        options: tuple[tuple[str, str], ...] = (), part: str = "",
    ) -> None:  # fmt: skip
        self.law, self.case, self.found, self.factory, self.options = law, case, found, factory, options
        self.part = part
        self.replay = f"from harness.laws import Case, check; check({law.id!r}, {factory}, {case!r}" + (
            f", {options!r})" if options else ")"
        )
        super().__init__(
            f"law {law.id} is broken\n  law:     {law.statement}\n  found:   {found[:900]}\n"
            f"  watches: {', '.join(law.watches)} (parts of a decoder: docs/laws.md)\n  case:    {case!r}\n"
            f"  replay:  {self.replay}"
        )

    def __reduce__(self) -> tuple[type[Violation], tuple[Law, Case, str, str, tuple[tuple[str, str], ...], str]]:
        """Travel between processes: an exception is pickled by its arguments."""
        return Violation, (self.law, self.case, self.found, self.factory, self.options, self.part)


class NotOffered(Exception):  # noqa: N818
    """The decoder does not expose what the law looks at, or claims another contract."""


class NotDone(NotOffered):
    """The decoder never does what the law looks at, by its own word or as its rounds show."""


def declines_of(decoder: Implementation) -> tuple[str, ...]:
    """Return what a decoder declares not to do, of `DECLINES`."""
    words = attribute_of(decoder, "declines", ())
    return tuple(word for word in DECLINES if word in words) if isinstance(words, tuple | list) else ()


@dataclass(frozen=True)
class _Plain:
    """A decoder without parts as `verify` takes it: what raises is not there, and its traces hold plain values."""

    inner: Implementation
    settings: Settings  # that it was built for
    declines: tuple[str, ...]  # read once, when it was built

    def __getattr__(self, name: str) -> Any:
        value = self if name.startswith("__") else attribute_of(self.inner, name, self)
        if value is self:
            raise AttributeError(name)
        return value

    @property
    def contract(self) -> str:
        return self.inner.contract

    def decode(self, request: Request, noise: Noise) -> Trace:
        if word := declined(self.declines, self.settings, request):
            raise InputError("declines", word, "is what the law asks", "the law proves nothing while the word stands")
        trace = self.inner.decode(request, noise)
        return made_plain(trace)[0] if isinstance(trace, Trace) else trace


@dataclass(frozen=True)
class Subject:
    """A decoder under test."""

    factory: Factory  # builds it for models and settings
    options: tuple[tuple[str, str], ...] = ()  # (name, value), for factories that take any (`Settings.options`)
    # by case and draft length, the rounds of decodes that `rules.oracle` found right: its cases have most in common
    held: dict[str, list[list[Round]]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The factory as `load_factory` finds it, quoted; ``FACTORY`` where it has no name of its own."""
        name = getattr(self.factory, "__qualname__", "<unnamed>")
        return "FACTORY" if "<" in name else repr(f"{self.factory.__module__}:{name}")

    def decoder(self, case: Case, models: ModelPair | None = None, draft_len: str | int = "") -> Implementation:
        """Build the decoder for a case, or for other networks or another draft length with its settings."""
        settings = replace(case.settings, options=self.options)
        if draft_len:
            settings = replace(settings, draft_len=draft_len)
        built = build_by_factory(self.factory, models or case.models, settings)
        has_parts = attribute_of(built, "parts", None) is not None
        return built if has_parts else _Plain(built, settings, declines_of(built))

    def follows(self, case: Case) -> bool:
        """Whether the decoder says that it follows the case's policy; one that refuses the case does not."""
        try:
            return getattr(self.decoder(case), "policy", None) == case.policy
        except InputError:
            return False

    def has_bonus(self, case: Case) -> bool:
        """Whether it can be built with bonus scales: one that refuses or declines them claims none."""
        try:
            return "bonus" not in declines_of(self.decoder(replace(case, bonus=True)))
        except InputError as error:
            return error.name != "bonus"

    def decode(
        self, case: Case, request: Request | None = None, noise: Noise | None = None, models: ModelPair | None = None
    ) -> Trace:
        """Decode a case; the three arguments replace what the case says."""
        request = request or case.request
        before = replace(request)
        decoder = self.decoder(case, models)
        decoded = decoder.decode(request, noise or case.noise(request))
        require(request == before, f"decoding changed the request to {request}")
        if Contract.of(decoder.contract) is not Contract.QUALITY:  # who claims the target's law leaves nothing out
            return replace(decoded, skipped_BSN=None)
        return decoded

    def parts(self, case: Case, *names: str) -> Any:
        """Return the decoder's parts. Raises `NotOffered` where one of `names` is not among them, or there are none."""
        parts = getattr(self.decoder(case), "parts", None)
        missing = [name for name in names if not hasattr(parts, name)]
        if parts is None or missing:
            raise NotOffered(NO_PARTS if parts is None else f"parts without {', '.join(missing)}")
        return parts

    def spied(self, case: Case, **wrappers: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Implementation:
        """Return a decoder of which some parts are wrapped; it must read `parts` when it decodes."""
        parts = self.parts(case, *wrappers)
        wrapped = {name: wrapper(getattr(parts, name)) for name, wrapper in wrappers.items()}
        decoder: Any = copy.copy(self.decoder(case))
        decoder.parts = replace(parts, **wrapped)
        return decoder  # type: ignore[no-any-return]


_Test = Callable[[Subject, Case], bool]  # raises `Broken`, or returns whether the case exercised the law


@dataclass(frozen=True)
class Law:
    """One law of a correct decoder."""

    id: str  # family and word, e.g. masks.definition
    statement: str  # what holds, one sentence
    watches: tuple[str, ...]  # components that a violation points to
    test: _Test = field(repr=False)  # raises `Broken`, or returns whether the case exercised the law
    contract: Contract = Contract.QUALITY  # weakest claim that entails the law
    wide: bool = True  # test on float64 networks, so that rounding cannot decide a token
    # under which it holds, of a decoder that says which one it follows (`decoder.policy`); empty = those whose
    # contract entails the law
    policies: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """First half of the id."""
        return self.id.partition(".")[0]

    @property
    def holds_under(self) -> tuple[str, ...]:
        """Names of the policies under which the law holds."""
        return self.policies or _HOLDS[self.contract]

    def fitted(self, case: Case) -> Case:
        """Return the case as the law takes it: float64 networks if it is wide, a policy under which it holds."""
        wide = case.wide() if self.wide and case.exact else case
        if policy_name(case.policy) in self.holds_under:
            return wide
        plain = [name for name in PLAIN if name in self.holds_under] or ["coupled"]
        return replace(wide, policy=plain[case.seed % len(plain)])

    def offered(self, subject: Subject, case: Case) -> Case:
        """Return the fitted case under a policy that the decoder knows, without a bonus scale if it refuses one.

        Only a decoder that says which policy it follows is asked for others than `PLAIN`: one that ignores
        `Settings.policy` is right, and would be judged by another rule than its own.
        """
        case = self.fitted(case)
        if case.bonus and not subject.has_bonus(case):
            case = replace(case, bonus=False)
        if case.policy in PLAIN:
            return case
        return case if subject.follows(case) else replace(case, policy="coupled")

    def check(self, subject: Subject, case: Case) -> bool:
        """Test the law in one case; return whether the case was not trivial for it.

        Raises:
            Violation: it is broken; also when the decoder raises something that is no refusal of the case.
            NotOffered: it does not apply to this decoder.
            InputError: the decoder refuses the case.
            StopSignal: a signal stops the harness, not the decoder.
            OutOfTimeError: its time is over.
        """
        models = self.fitted(case).models
        before = checksums(models.named_weights())  # before any decoder is built
        case = self.offered(subject, case)
        decoder = subject.decoder(case)
        declines = declines_of(decoder)
        if self.family == "batch" and "several images" in declines:
            raise NotDone("the decoder declines several images")
        case = case.without(declines)
        claimed, follows = Contract.of(decoder.contract), getattr(decoder, "policy", None) == case.policy
        if not claimed.entails(self.contract) and not (follows and policy_name(case.policy) in self.policies):
            raise NotOffered(f"contract {claimed}")
        try:
            with ctrl_c_is_a_stop():
                exercised = self.test(subject, case)
            changed = [name for name, value in checksums(models.named_weights()).items() if value != before[name]]
            require(not changed, f"the decoder wrote into {', '.join(changed[:3])}, which it shares with its oracle")
            return exercised
        except Broken as broken:
            forget_models()  # who knows what was written into them
            raise Violation(self, case, str(broken), subject.name, subject.options, broken.part) from None
        except (NotOffered, InputError, StopSignal, OutOfTimeError):
            raise
        except BaseException as error:  # of whatever kind: the decoder is somebody else's code
            forget_models()
            found = f"the decoder raised {crash_of(error)}"
            raise Violation(self, case, found, subject.name, subject.options, "crash") from error


REGISTERED: list[Law] = []  # by `law`, in the order in which the families' modules are loaded


def law(
    name: str, *watches: str, contract: Contract = Contract.QUALITY, wide: bool = True, policies: tuple[str, ...] = ()
) -> Callable[[_Test], _Test]:
    """Register a function as a law, as `Law` has the arguments; its docstring begins with what holds."""

    def added(test: _Test) -> _Test:
        statement = " ".join((inspect.getdoc(test) or "").partition("\n\n")[0].split())
        REGISTERED.append(Law(name, statement, watches, test, contract, wide, policies))
        return test

    return added


def require_same(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str = "",
    atol: float | Mapping[str, float] = 0.0, part: str = "",
) -> None:  # fmt: skip
    """Raise `Broken` unless both sets of tensors are equal: names, dtypes, shapes, values within `atol` (by name)."""
    wrong = differences(actual, expected, atol if isinstance(atol, Mapping) else dict.fromkeys(expected, atol))
    require(not wrong, f"{where}{': ' if where else ''}{'; '.join(map(str, wrong))}", part)


def require_equal(name: str, actual: Tensor, expected: Tensor, where: str = "", atol: float = 0.0) -> None:
    """Raise `Broken` unless two tensors are equal, as `require_same` says."""
    require_same({name: actual}, {name: expected}, where, atol)


def require_tokens(actual_BL: Tensor, expected_BL: Tensor, where: str) -> None:
    """Raise `Broken` with the first differing position unless the tokens are equal."""
    if actual_BL.shape != expected_BL.shape:
        raise Broken(f"{where}: tokens {tuple(actual_BL.shape)}, not {tuple(expected_BL.shape)}")
    if differ := torch.nonzero(actual_BL != expected_BL).tolist():
        image, position = differ[0]
        was, expected = int(actual_BL[image, position]), int(expected_BL[image, position])
        raise Broken(f"{where}: image {image}, position {position}: token {was}, not {expected}; {len(differ)} differ")


# What a round says of scales and tokens.
_SAID = (
    "first", "drafted", "accepted", "corrected", "bonus", "accepted_tokens", "corrected_tokens", "bonus_tokens",
)  # fmt: skip
# Of the first that differs; else accept's. Where scales are right, tokens are counted wrongly.
_WHOSE = {"drafted": "draft_len", "bonus": "bonus"} | dict.fromkeys(_SAID[5:], "counts")


def require_rounds(actual: list[list[Round]], expected: list[list[Round]], where: str) -> None:
    """Raise `Broken` with the first round that says something else than it must."""
    for image, (turns, expected_turns) in enumerate(zip(actual, expected, strict=True)):
        for k, (one, other) in enumerate(zip(turns, expected_turns, strict=False)):
            wrong = [name for name in _SAID if getattr(one, name) != getattr(other, name)]
            was, must = ({name: getattr(turn, name) for name in wrong} for turn in (one, other))
            part = _WHOSE.get(wrong[0], "accept") if wrong else ""
            said = f"{where}: round {k} of image {image} (from scale {other.first}) says {was}, not {must}"
            require(not wrong, said, part)
        count = len(expected_turns)
        require(len(turns) == count, f"{where}: image {image} took {len(turns)} rounds, not {count}")


def shown_tensors(decoded: Trace) -> Intermediates:
    if decoded.intermediates is None:
        raise NotOffered("no intermediates")
    return decoded.intermediates


def require_shown_rounds(decoded: Trace) -> None:
    if not decoded.rounds:
        raise NotOffered("no rounds in the trace")


def require_accepted_whole(decoded: Trace, where: str) -> None:
    """Raise `Broken` unless every round accepts all of its draft, which is the target's own."""
    require_shown_rounds(decoded)
    for image, rounds in enumerate(decoded.rounds):
        for turn in rounds:
            said = f"image {image} kept {turn.accepted} of {turn.drafted} scales from scale {turn.first}"
            require(turn.accepted == turn.drafted and not turn.corrected, f"draft = target, {where}: {said}")
