"""A decoder that writes into what it shares with its oracle breaks every law, and spoils no other case."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness import InputError, ModelPair, Request, SeededNoise, Settings, Trace, build_decoder
from harness.decoders import OutOfTimeError
from harness.errors import StopSignal
from harness.judge._verdict import Verdict
from harness.laws import LAWS as ALL
from harness.laws import Case, Violation, check, run_conformance
from harness.models._pair import checksums
from harness.pool._workers import _stop
from harness.protocol import Round
from harness.speculative.sampler import SpeculativeDecoder
from tests.helpers import hearing

LAWS = ("acceptance.token-identical", "state.once", "guidance.unconditional")
CASE = Case(patch_nums=(1, 2, 3))
ODD = replace(CASE, seed=1)


class Writes:
    """A decoder that changes the target before every decode."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.models, self.inner = models, build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        self.models.target.weights["head.weight"][0, 0] += 1e-3
        return self.inner.decode(request, noise)


def writes_when_built(models: ModelPair, settings: Settings):
    models.target.weights["head.bias"].zero_()
    return build_decoder(models, settings)


class ChangesRequest(Writes):
    """A decoder that switches guidance off in the request that it is given."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        decoded = self.inner.decode(request, noise)
        object.__setattr__(request, "cfg", 0.0)
        return decoded


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("factory", [Writes, writes_when_built], ids=["decode", "factory"])
def test_writing_into_the_networks_breaks_every_law(law: str, factory):
    due = checksums(CASE.models.named_weights())
    with pytest.raises(Violation):
        check(law, factory, CASE)
    assert checksums(CASE.models.named_weights()) == due
    check(law, build_decoder, CASE)


@pytest.mark.parametrize("policy", ["coupled", "code:2"])
def test_a_decoder_that_writes_when_it_is_asked_what_it_offers_is_seen(policy: str):
    case = replace(CASE, policy=policy, bonus=True)
    with pytest.raises(Violation, match="wrote into"):
        check("state.refusal", writes_when_built, case)


class NoBonus:
    """A right decoder that refuses bonus scales and is asked for none."""

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        if settings.bonus:
            raise InputError("bonus", True, "must be off", "leave --bonus out")
        inner = build_decoder(models, settings)
        self.contract, self.decode = inner.contract, inner.decode  # by the policy that is asked


class Ignores(NoBonus):
    """It takes them, and never makes one: a claim that nothing proves."""

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        super().__init__(models, replace(settings, bonus=False))


def test_a_decoder_without_bonus_scales_is_asked_for_none():
    names = ["acceptance.independent", "acceptance.token-identical", "batch.bonus", "batch.splitting", "state.once"]
    laws = [law for law in ALL if law.id in names]
    rows = {row.law.id: row for row in run_conformance(NoBonus, 6, laws=laws).rows}
    assert sum(row.refused for row in rows.values()) == 0
    assert rows.pop("batch.bonus").skipped == "it has no bonus scales"
    assert {row.verdict for row in rows.values()} == {Verdict.IDENTICAL}
    (row,) = run_conformance(Ignores, 2, laws=[law for law in laws if law.id == "batch.bonus"]).rows
    assert row.verdict is Verdict.INCONCLUSIVE


class Stopped(Writes):
    """Its process is told to end while it decodes, or it ends itself."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        _stop(signal.SIGTERM, None)
        return self.inner.decode(request, noise)


class Interrupted(Writes):
    """Somebody presses Ctrl-C while it decodes."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        signal.raise_signal(signal.SIGINT)
        return self.inner.decode(request, noise)


class TooLate(Writes):
    """Its time is over."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        raise OutOfTimeError("no answer within 1 s (timeout)")


class Leave(BaseException):
    """An exception of its own that no `except Exception` hears."""


@pytest.mark.parametrize(("factory", "status"), [(Stopped, 143), (Interrupted, 130)])
def test_who_is_told_to_end_is_not_accused(factory, status: int):
    with hearing(), pytest.raises(StopSignal) as stop:
        check("state.once", factory, CASE)
    assert stop.value.status == status


def test_who_has_no_time_left_ends_the_law():
    with pytest.raises(OutOfTimeError):
        check("state.once", TooLate, CASE)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("3"), GeneratorExit("3"), Leave("3")])
def test_whatever_a_decoder_raises_breaks_the_law(error: BaseException):
    class Exits(Writes):
        def decode(self, request: Request, noise: SeededNoise) -> Trace:
            raise error

    with pytest.raises(Violation, match=f"the decoder raised {type(error).__name__}: 3"):
        check("state.once", Exits, CASE)


def test_writing_into_the_request_is_told():
    with pytest.raises(Violation, match="decoding changed the request"):
        check("state.once", ChangesRequest, CASE)


def test_what_else_holds_does_not_hide_it():
    with pytest.raises(Violation, match=r"the decoder wrote into target\.head\.weight"):
        check("state.refusal", Refuses, CASE)


class Refuses(Writes):
    """A decoder that writes and then refuses, as the law of refusals wants it to."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        self.models.target.weights["head.weight"][0, 0] += 1e-3
        raise ValueError("label")


@pytest.mark.parametrize(
    ("law", "case", "change", "part"),
    [
        ("work.least", CASE, lambda turn: {"draft_rows": max(0, turn.draft_rows - 4)}, "counts"),
        ("work.least", CASE, lambda turn: {"draft_rows": turn.draft_rows + 4}, ""),
        ("work.least", CASE, lambda turn: {"draft_cache": 0, "draft_rows": 0}, ""),
        (
            "acceptance.real",
            replace(CASE, seed=1),
            lambda turn: {"accepted_tokens": turn.accepted_tokens + 1},
            "counts",
        ),
        ("acceptance.real", replace(CASE, seed=1), lambda turn: {"corrected": not turn.corrected}, "accept"),
    ],
)
def test_what_was_only_counted_wrongly_is_counts(
    monkeypatch: pytest.MonkeyPatch, law: str, case: Case, change: Callable[[Round], dict[str, Any]], part: str
):
    check(law, build_decoder, case)
    real = SpeculativeDecoder.decode

    def decode(self: SpeculativeDecoder, request: Request, noise: SeededNoise) -> Trace:
        trace = real(self, request, noise)
        trace.rounds = [[replace(turn, **change(turn)) for turn in turns] for turns in trace.rounds]
        return trace

    monkeypatch.setattr(SpeculativeDecoder, "decode", decode)
    with pytest.raises(Violation) as found:
        check(law, build_decoder, case)
    assert found.value.part == part
