"""Laws of a verification: the harness's own decoder keeps them, planted bugs break them, no decoder ends them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from harness.decoders._factory import Limits
from harness.errors import InputError, StopSignal
from harness.judge._verdict import Verdict
from harness.laws import LAWS, Case, Subject, Violation
from harness.laws import _conformance as module
from harness.laws._apart import in_time
from harness.laws._case import CHOICES
from harness.laws._conformance import LAW_CASES, LawsInterrupted, LawsPlace, summed_up, try_laws_quickly
from harness.laws._engine import CaseList, LawResult, try_law
from harness.models._pair import ModelPair
from harness.mutants._hunt import MUTANTS
from harness.mutants._mutant import options_of
from harness.pool._employ import Crew
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Round, Trace
from harness.protocol.noise import Noise
from harness.protocol.pyramid import PATCH_NUMS_256
from harness.report._terminal import laws_line
from harness.runs._records import BrokenLaw, LawsTried
from harness.runs._result import Verification
from harness.schema import record_of
from harness.speculative.sampler import SpeculativeDecoder, build_decoder

BY_ID = {law.id: law for law in LAWS}
PLANTED = {mutant.id: mutant for mutant in MUTANTS}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let four laws stand for all."""
    names = ("masks.definition", "numbers.encode", "state.once", "acceptance.keep")
    monkeypatch.setattr(module, "LAWS", tuple(BY_ID[name] for name in names))


def leaves(models: ModelPair, settings: Settings):
    os._exit(0)


def hangs(models: ModelPair, settings: Settings):
    time.sleep(60.0)


@pytest.mark.usefixtures("few")
def test_a_right_decoder_keeps_them_and_a_bug_of_code_that_both_sides_share_is_seen():
    done: list[str] = []
    networks = ("bfloat16", "float64", "shared AdaLN")
    assert try_laws_quickly(build_decoder, progress=done.append) == LawsTried(LAW_CASES, held=4, networks=networks)
    assert sorted(done) == sorted(law.id for law in module.LAWS)
    mutant = PLANTED["numbers.highest"]
    with mutant.planted():
        found = try_laws_quickly(mutant)
    (broken,) = found.broken
    assert (broken.component, found.held) == ("quantizer", 3)
    assert broken.clause.startswith("law numbers.encode: ")
    assert "; from harness.laws import Case, check; check('numbers.encode', " in broken.clause
    assert isinstance(broken.seed, int)


@pytest.mark.usefixtures("few")
def test_a_decoder_that_ends_its_process_is_a_defect_where_it_has_processes_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "LAWS", (BY_ID["state.once"],))
    found = try_laws_quickly("tests.unit.laws.test_few_cases:leaves", 1, where=LawsPlace("cpu", Limits()))
    (broken,) = found.broken
    assert broken.component == "update_state_with_accepted_tokens"
    assert "the process died" in broken.clause
    assert "check('state.once', 'tests.unit.laws.test_few_cases:leaves', Case())" in broken.clause


@pytest.mark.usefixtures("few")
def test_a_decoder_that_hangs_is_a_defect_and_nobody_waits_for_the_other_laws(monkeypatch: pytest.MonkeyPatch):
    crew: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "Crew", lambda devices: crew.append(devices) or Crew(devices[:1]))  # faster in here
    found = try_laws_quickly(hangs, 1, where=LawsPlace("cpu", Limits(0.2)))
    assert crew == [("cpu", "cpu")]
    (broken,) = found.broken
    assert broken.clause.startswith("law masks.definition: the process died: no answer within 0.2 s (timeout); ")
    assert found.left == ("numbers.encode", "state.once", "acceptance.keep")


class OfOnePyramid:
    """A right decoder that has written the scales of VAR into its code; `crashes` on all of them, too."""

    contract, crashes = "token-identical", False

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: Noise) -> Trace:
        if self.inner.models.pyramid.patch_nums != PATCH_NUMS_256 or self.crashes:
            raise RuntimeError("the size of tensor a (9) must match the size of tensor b (4)")
        return self.inner.decode(request, noise)


class Crashes(OfOnePyramid):
    crashes = True


@pytest.mark.usefixtures("few")
def test_a_decoder_of_one_pyramid_is_asked_on_that_one_and_the_line_says_so():
    tried = try_laws_quickly(OfOnePyramid, where=LawsPlace(limits=Limits()))
    assert (tried.held, tried.broken) == (2, ())
    assert laws_line(tried) == (
        "laws, in 2 cases each on the published pyramid alone, since it raises on small ones: 2 held, 2 not applicable"
    )
    assert try_laws_quickly(build_decoder, where=LawsPlace(limits=Limits())).pyramid == ""
    crashed = try_laws_quickly(Crashes, where=LawsPlace(limits=Limits()))
    assert (crashed.held, len(crashed.broken)) == (1, 1)


@pytest.mark.usefixtures("few")
def test_a_signal_leaves_what_was_tried_until_then():
    def stop(law: str) -> None:
        raise StopSignal(signal.SIGTERM)

    with pytest.raises(LawsInterrupted) as stopped:
        try_laws_quickly(build_decoder, progress=stop)
    assert stopped.value.status == 143
    assert stopped.value.tried.held == 1
    assert len(stopped.value.tried.left) == 3


def test_a_law_in_time_leaves_no_alarm_behind():
    with in_time(0.2):
        pass
    time.sleep(0.25)
    with in_time(0.0):
        time.sleep(0.01)


def test_what_proves_nothing_is_told_apart():
    law = LAWS[0]
    broken = Violation(law, Case(seed=7), "rows differ\n   by 1")
    laws_ = LAWS[:6]
    rows = [
        LawResult(law, 1, 0, violation=broken), LawResult(laws_[1], 2, 1), LawResult(laws_[2], 2, 0),
        LawResult(laws_[3], 0, 0, refused=2, why="x=1: no"), LawResult(laws_[4], skipped="no parts"),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LAWS", laws_)
        found = summed_up(rows, 2)
    seen = BrokenLaw("split_logits_by_scale", f"law {law.id}: rows differ by 1; {broken.replay}", 7)
    assert found == LawsTried(
        2, 1, (seen,), (laws_[2].id,), (laws_[3].id,), "x=1: no", not_applicable=(laws_[4].id,), left=(laws_[5].id,)
    )
    assert record_of(LawsTried, json.loads(json.dumps(found.as_dict()))) == found  # as a run file keeps it
    assert laws_line(found) == (
        "laws, in 2 cases each: 1 held, 1 broken, 1 not put to the test in so few (--laws 12 tries more), 1 refused, "
        "1 not applicable, 1 not tried"
    )
    assert laws_line(LawsTried(2, 1)) == "laws, in 2 cases each: 1 held"


def test_a_broken_law_is_a_defect_of_the_run_and_is_kept():
    result = Verification([], None, torch.device("cpu"), torch.float32, torch.float32, "none")
    right = LawsTried(2, 1, trivial=("a.b",))
    result.take_laws(right)
    assert result.verdict is not Verdict.DEFECT
    assert result.reasons == []  # what so few cases leave trivial is no reason for anything
    result.take_laws(replace(right, broken=(BrokenLaw("quantizer", "law numbers.encode: no", 3),)))
    assert result.verdict is Verdict.DEFECT
    assert str(result.first_divergence) == "component quantizer (law numbers.encode: no) at seed 3"
    assert result.summary.endswith("1 defect")
    assert '"laws":{"cases":2' in result.to_json().replace(" ", "").replace("\n", "")


@pytest.mark.parametrize(
    ("held", "refused", "reasons"), [(3, 3, []), (2, 3, ["the decoder refused 3 of 5 laws: x=1: no"])]
)
def test_a_decoder_that_refuses_most_laws_proves_nothing(held: int, refused: int, reasons: list[str]):
    result = Verification([], None, torch.device("cpu"), torch.float32, torch.float32, "none")
    result.take_laws(LawsTried(2, held, refused=("a.b",) * refused, why="x=1: no", not_applicable=("c.d",) * 9))
    assert result.reasons == reasons


def test_laws_that_nobody_tried_are_a_reason():
    result = Verification([], None, torch.device("cpu"), torch.float32, torch.float32, "none")
    result.take_laws(LawsTried(2, 2, left=("a.b",)))
    assert result.reasons == ["1 law not tried"]
    assert result.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("count", [0, -1])
def test_no_case_at_all_is_refused(count: int):
    with pytest.raises(InputError, match=rf"laws={count}: must be 1 case or more; pass 2, or no laws at all"):
        try_laws_quickly(build_decoder, count)


@pytest.mark.slow
def test_two_cases_leave_no_law_trivial_and_the_law_of_policies_meets_them_all():
    tried = try_laws_quickly(build_decoder)
    assert tried == LawsTried(2, held=len(LAWS), networks=tried.networks)


def test_the_law_of_policies_meets_every_policy():
    tried = [Case(seed=1), Case(seed=2)]
    assert list(CaseList(tried, every_policy=True).batches(BY_ID["state.once"])) == [tried]
    assert list(CaseList(tried).batches(BY_ID["rules.oracle"])) == [tried]
    (met,) = CaseList(tried, every_policy=True).batches(BY_ID["rules.oracle"])
    assert [case.policy for case in met] == list(CHOICES["policy"])
    assert {case.seed for case in met} == {1, 2}


class Forgets(dict[str, list[list[Round]]]):
    def setdefault(self, key: str, default: object = None) -> list[list[Round]]:
        return []


@pytest.mark.parametrize(("wrong", "from_"), [("", 1), ("kl:0.3+partial", 1), ("match:0.9", 2)])
def test_the_law_of_policies_decodes_twice_at_most_and_one_wrong_policy_is_seen(wrong: str, from_: int):
    """That a repeated decode alone is wrong is seen, too."""
    decoded = Counter[tuple[Settings, Request, str]]()

    class Counting(SpeculativeDecoder):
        def decode(self, request: Request, noise: Noise) -> Trace:
            trace = super().decode(request, noise)
            asked = self.asked, request, str(self.models.draft.weights["head.weight"][0, 0])
            decoded[asked] += 1
            is_wrong = self.policy == wrong and decoded[asked] >= from_
            return replace(trace, tokens_BL=trace.tokens_BL.flip(1)) if is_wrong else trace

    def counting(models: ModelPair, settings: Settings) -> Counting:
        decoder = Counting(models, options_of(settings))
        decoder.asked = settings
        return decoder

    cases = CaseList([Case((1, 2, 3), seed=1), Case((1, 2, 3), seed=2)], every_policy=True, passes=0)
    row = try_law(BY_ID["rules.oracle"], Subject(counting), cases)
    assert max(decoded.values()) <= 2
    assert (row.violation is not None) is bool(wrong)
    if not wrong:
        few = set(decoded)
        try_law(BY_ID["rules.oracle"], Subject(counting, held=Forgets()), cases)
        assert set(decoded) == few  # every decode that the law asks for was made
        assert {settings.policy for settings, _, _ in decoded} >= set(CHOICES["policy"]) - {"rejection"}


def tells_its_threads(models: ModelPair, settings: Settings):
    raise InputError("threads", torch.get_num_threads(), "are told", "pass others")


@pytest.fixture
def two_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("few", "two_cores")
def test_two_processes_of_a_decoders_laws_share_the_cores():
    tried = try_laws_quickly(tells_its_threads, where=LawsPlace(limits=Limits()))
    assert tried.why.startswith("threads=1: ")


@pytest.mark.usefixtures("few", "two_cores")
def test_laws_in_this_process_take_one_thread_and_test_what_is_there(monkeypatch: pytest.MonkeyPatch):
    threads = list[int]()

    def patched(self: object, *given: object) -> object:
        threads.append(torch.get_num_threads())
        raise ValueError("as it was patched")

    monkeypatch.setattr(SpeculativeDecoder, "decode", patched)
    assert any("as it was patched" in law.clause for law in try_laws_quickly(build_decoder).broken)
    assert (set(threads), torch.get_num_threads()) == ({1}, 2)
