"""A batch that goes in step, by the least that one of its images accepts, is right; one that goes by less is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness import ModelPair, Request, Settings, Trace, build_decoder, laws
from harness.judge import Broken, Verdict
from harness.laws import Case, Violation, check
from harness.laws._batch import _waits, in_step
from harness.laws._conformance import summed_up
from harness.laws._engine import CaseList, LawResult, try_law
from harness.laws._law import NotDone, NotOffered, Subject
from harness.mutants._mutant import patched
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
    told = summed_up([replace(row, examples=1)], len(SEEDS))  # a case with one image beside them
    assert (told.trivial, told.not_applicable) == ((), (name,))


def slow(models: ModelPair, settings: Settings, *declines: str) -> Any:
    """Return a right decoder that goes on by one scale a round, whatever is accepted: images go together alone, too."""

    def one_scale(verified: Any, window: Any, bonus: bool) -> Any:
        outcome = doors.fetch_outcome(verified, window, bonus)
        return replace(outcome, accepted=[0] * len(outcome.accepted), finished=[1] * len(outcome.accepted))

    inner = patched({"harness.speculative._round:fetch_outcome": one_scale})(models, settings)

    def decode(_: ModelPair, __: Settings, *asked: Any) -> Trace:
        trace = inner.decode(*asked)
        told = {"corrected": True, "accepted_tokens": 0, "corrected_tokens": 1}
        return replace(trace, rounds=[[replace(turn, **told) for turn in turns] for turns in trace.rounds])

    made = doors.Wrapped(models, settings, "token-identical", decode)
    made.declines = declines
    return made


@pytest.mark.parametrize("name", ["batch.splitting", "batch.rounds"])
def test_images_that_go_together_by_themselves_prove_nothing(name: str):
    case = replace(CASE, bonus=False)
    assert in_step(slow(case.models, case.settings).decode(case.request, case.noise()))
    assert tried(name, slow, case).verdict is Verdict.INCONCLUSIVE
    row = tried(name, lambda *given: slow(*given, "diverging batches"), case)
    assert (row.verdict, row.skipped) == (None, "the decoder declines diverging batches")


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


def declining(word: str, decode: doors.Decode) -> Any:
    """Return a factory of decoders that must not be asked what they decline."""

    def careful(models: ModelPair, settings: Settings, request: Request, noise: Any) -> Trace:
        assert not ASKS[word](settings, request), f"{word} was asked"
        return decode(models, settings, request, noise)

    def factory(models: ModelPair, settings: Settings) -> Any:
        made = doors.Wrapped(models, settings, "token-identical", careful)
        made.declines = (word,)
        return made

    return factory


@pytest.mark.parametrize("word", ASKS)
def test_no_law_asks_what_a_decoder_declines(word: str):
    rows = [try_law(law, Subject(declining(word, doors._own)), CaseList(FULL)) for law in laws.LAWS]
    assert [f"{row.law.id}: {row.violation.found}" for row in rows if row.violation] == []
    assert sum(row.verdict is Verdict.IDENTICAL for row in rows) > 20
    for row in rows:
        if row.law.family == "batch" and word == "several images":
            assert row.skipped == "the decoder declines several images"
        elif row.refused:  # what a law cannot do without proves nothing
            assert row.verdict is Verdict.INCONCLUSIVE or row.exercised >= row.refused
            assert row.why.startswith(f"declines={word}: is what the law asks; ")
    if word == "bonus":
        assert {row.skipped for row in rows if row.law.id in ("batch.bonus", "batch.caches")} == {
            "it has no bonus scales"
        }


def test_a_word_hides_nothing_else():
    row = tried("acceptance.token-identical", declining("guidance", doors._wrong_token), *FULL)
    assert row.verdict is Verdict.DEFECT


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


def test_a_batch_in_step_goes_on_by_what_its_images_accept():
    def decoded(factory: Any, request: Request) -> Trace:
        return factory(case.models, case.settings).decode(request, case.noise(request))

    case = replace(CASE, bonus=False, seed=4)
    alone = [decoded(doors.lock_step, case.request.only([b])) for b in range(case.B)]
    assert _waits(case, decoded(doors.lock_step, case.request), alone)
    behind = decoded(slow, case.request)
    with pytest.raises(Broken, match=r"round 0: the batch goes on by 1 scales, its images alone by 2\.\.2"):
        _waits(case, behind, alone)
    assert _waits(replace(case, exact=False), behind, alone)  # where rounding decides what is accepted
    assert not _waits(case, decoded(build_decoder, case.request), alone)  # its images go on apart
