"""A batch that goes in step, by the least that one of its images accepts, is right; one that goes by less is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness import ModelPair, Request, Settings, Trace, build_decoder, laws
from harness.judge import Verdict
from harness.laws import Case, Violation, check
from harness.laws._batch import in_step
from harness.laws._engine import CaseList, LawResult, try_law
from harness.laws._law import NotDone, NotOffered, Subject
from harness.mutants._mutant import patched
from harness.speculative.sampler import SpeculativeDecoder
from tests import doors

CASE = Case(patch_nums=(1, 2, 3, 4), labels=(0, 1, 2, 3), draft="close", draft_len=2, seed=3, bonus=True)
APART = ("batch.rounds", "batch.caches")  # what images do that go on from different scales
LAWS = ("batch.permutation", "batch.splitting", "batch.padding", "batch.neighbour", "batch.precisions", "batch.bonus",
        "acceptance.honest", "rules.recount")  # fmt: skip


def _less(verified: Any, window: Any, bonus: bool) -> Any:
    outcome = doors.least(verified, window, bonus)
    end = max(1, outcome.finished[0] - (len(outcome.accepted) > 1))  # alone an image goes as it must
    return replace(outcome, accepted=[min(n, end) for n in outcome.accepted], finished=[end] * len(outcome.accepted))


def tried(name: str, factory: Any, *cases: Case) -> LawResult:
    (law,) = (law for law in laws.LAWS if law.id == name)
    return try_law(law, Subject(factory), CaseList(cases))


SEEDS = [replace(CASE, seed=seed) for seed in range(3, 11)]


@pytest.mark.parametrize("name", LAWS)
def test_a_batch_in_step_is_put_to_the_laws_of_the_batch(name: str):
    assert tried(name, doors.lock_step, *SEEDS).verdict is Verdict.IDENTICAL


@pytest.mark.parametrize("name", APART)
def test_what_a_batch_in_step_never_does_does_not_apply(name: str):
    row = tried(name, doors.lock_step, *SEEDS)
    assert row.verdict is None
    assert row.skipped == "the decoder takes all images of a batch through the same rounds"


def test_images_that_go_together_by_themselves_prove_nothing():
    def one_scale(verified: Any, window: Any, bonus: bool) -> Any:
        outcome = doors.fetch_outcome(verified, window, bonus)
        return replace(outcome, accepted=[0] * len(outcome.accepted), finished=[1] * len(outcome.accepted))

    def slow(models: ModelPair, settings: Settings) -> Any:
        made = patched({"harness.speculative._round:fetch_outcome": one_scale})(models, settings)

        def decode(_: ModelPair, __: Settings, *asked: Any) -> Trace:
            trace = made.decode(*asked)
            told = [[replace(turn, corrected=True, accepted_tokens=0, corrected_tokens=1) for turn in turns]
                    for turns in trace.rounds]  # fmt: skip
            return replace(trace, rounds=told)

        return doors.Wrapped(models, settings, "token-identical", decode)

    case = replace(CASE, bonus=False)
    assert in_step(slow(case.models, case.settings).decode(case.request, case.noise()))
    assert tried("batch.splitting", slow, case).verdict is Verdict.INCONCLUSIVE
    assert tried("batch.rounds", slow, case).verdict is Verdict.INCONCLUSIVE


def test_a_batch_in_step_whose_images_are_mixed_up_is_wrong():
    def mixed(models: ModelPair, settings: Settings) -> Any:
        inner = doors.lock_step(models, settings)

        class Mixed:
            contract = inner.contract

            def decode(self, request: Request, noise: Any) -> Trace:
                trace = inner.decode(request, noise)
                return replace(trace, tokens_BL=trace.tokens_BL.roll(1, 0) if request.B > 4 else trace.tokens_BL)

        return Mixed()

    assert tried("batch.padding", mixed, *SEEDS).verdict is Verdict.DEFECT


class Bare:
    """A decoder that has nothing but what it must have, and shows tuples."""

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self._inner = build_decoder(models, settings)

    contract = "token-identical"

    def decode(self, request: Request, noise: Any) -> Trace:
        made = self.__dict__["_inner"].decode(request, noise)
        return replace(made, rounds=tuple(map(tuple, made.rounds)), target_calls=tuple(made.target_calls))

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def test_laws_take_a_decoder_as_verify_does():
    for name in ("acceptance.token-identical", "batch.rounds"):
        check(name, Bare, replace(CASE, bonus=False))
    with pytest.raises(NotOffered, match="which rule it follows"):
        check("rules.oracle", Bare, CASE)


@pytest.mark.parametrize("name", ["batch.rounds", "acceptance.honest"])
def test_one_that_goes_by_less_is_seen(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doors, "IN_STEP", patched({"harness.speculative._round:fetch_outcome": _less}))
    with pytest.raises(Violation, match=r"round 0 was|corrected iff a drafted scale was rejected"):
        check(name, doors.lock_step, replace(CASE, bonus=False))


ASKS = {
    "bonus": lambda settings, request: settings.bonus, "several images": lambda settings, request: request.B > 1,
    "top_k": lambda settings, request: request.top_k > 0, "top_p": lambda settings, request: request.top_p > 0,
    "guidance": lambda settings, request: request.cfg != 0,
    "batch order": lambda settings, request: request.order == "batch",
}  # fmt: skip
FULL = [replace(CASE, top_k=3, top_p=0.9, order="batch", cfg=2.0, seed=seed) for seed in (3, 5)]


def declining(word: str, has_parts: bool) -> Any:
    """Return a factory of right decoders that must not be asked what they decline."""

    class Declining(SpeculativeDecoder if has_parts else doors.Wrapped):  # type: ignore[misc]
        declines = (word,)

        def decode(self, request: Request, noise: Any) -> Trace:
            assert not ASKS[word](self.options if has_parts else self.settings, request), f"{word} was asked"
            return super().decode(request, noise)

    def factory(models: ModelPair, settings: Settings) -> Any:
        plain = build_decoder(models, settings if has_parts else replace(settings, policy="coupled"))
        if has_parts:
            plain.__class__ = Declining
            return plain
        return Declining(models, settings, "token-identical", lambda _, __, *asked: plain.decode(*asked))

    return factory


@pytest.mark.parametrize("has_parts", [False, True])
@pytest.mark.parametrize("word", ASKS)
def test_no_law_asks_what_a_decoder_declines(word: str, has_parts: bool):
    rows = [try_law(law, Subject(declining(word, has_parts)), CaseList(FULL)) for law in laws.LAWS]
    assert [f"{row.law.id}: {row.violation.found}" for row in rows if row.violation] == []
    assert sum(row.verdict is Verdict.IDENTICAL for row in rows) > 20
    declined = [row for row in rows if row.skipped == f"the decoder declines {word}"]
    assert declined or word in ("bonus", "batch order")
    assert all(row.verdict is None for row in declined if not row.exercised)


def test_only_what_a_decoder_never_does_makes_trivial_cases_nothing():
    answers = iter([False, NotOffered("not here"), False, NotDone("never"), True, NotDone("never")])

    def test(subject: Subject, case: Case) -> bool:
        answer = next(answers)
        if isinstance(answer, NotOffered):
            raise answer
        return answer

    law = replace(laws.LAWS[0], test=test)
    verdicts = [try_law(law, Subject(build_decoder), CaseList(FULL)).verdict for _ in range(3)]
    assert verdicts == [Verdict.INCONCLUSIVE, None, Verdict.IDENTICAL]


def test_what_a_decoder_declines_is_read_when_it_is_built():
    class Later(doors.Wrapped):
        declines: tuple[str, ...] = ()

        def decode(self, request: Request, noise: Any) -> Trace:
            self.declines = ("guidance", [])  # type: ignore[assignment]
            return super().decode(request, noise)

    def factory(models: ModelPair, settings: Settings) -> Any:
        return Later(models, settings, "token-identical", doors._wrong_token)

    assert tried("acceptance.token-identical", factory, CASE).verdict is Verdict.DEFECT
