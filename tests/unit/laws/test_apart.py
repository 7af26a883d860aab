"""Laws of a decoder in a process of its own: the same answers as here, and nothing of that process is executed."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import InputError, ModelPair, Request, SeededNoise, Settings, Trace, build_decoder
from harness.decoders import Limits
from harness.judge import PartVerdict, Verdict
from harness.laws import LAWS, Case, Law
from harness.laws._apart import answer_of, read_answer
from harness.laws._conformance import LawWork, _row, summed_up, try_laws
from harness.laws._engine import CaseList, LawResult, fixed_cases
from harness.laws._law import Violation
from harness.pool import Crew, Died
from harness.processes import UnreadableError
from harness.report._terminal import laws_line, parts_verdict
from harness.runs import LawsTried
from harness.schema import record_of

HERE = "tests.unit.laws.test_apart"
BY_ID = {law.id: law for law in LAWS}
SOME = [BY_ID[name] for name in ("masks.definition", "state.once", "acceptance.token-identical")]
TOLD = ("'a:b'", ())
MARK = "SDVAR_TEST_MARK"


class Marks:
    """What leaves a mark wherever it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (os.environ[MARK],)


def _says(words: bytes) -> None:
    """Answer in the harness's place, on every descriptor that is open."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, words)
        except OSError:
            continue


def sends_pickles(models: ModelPair, settings: Settings) -> Any:
    _says(pickle.dumps(Marks()) + b"\n")
    return build_decoder(models, settings)


class Wrong:
    """The first token of every image is another one."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        trace = self.inner.decode(request, noise)
        trace.tokens_BL[:, 0] ^= 1
        return trace


def rows(factory: Any, laws: Sequence[Law], limits: Limits | None = None) -> list[LawResult]:
    work = LawWork(factory, (), CaseList(fixed_cases(2, 2)), limits)
    with closing(try_laws(work, Crew(("cpu",)), laws)) as results:
        return sorted(results, key=lambda row: row.law.id)


def seen(row: LawResult) -> tuple[Any, ...]:
    case = row.violation and (row.violation.case, row.violation.found, row.violation.part, str(row.violation))
    return row.law.id, row.examples, row.exercised, row.refused, row.skipped, row.not_done, row.why, case


@pytest.mark.parametrize("name", ["harness:build_decoder", f"{HERE}:Wrong"])
def test_the_answers_are_those_of_this_process(name: str):
    here, apart = rows(name, SOME), rows(name, SOME, Limits())
    assert [seen(row) for row in here] == [seen(row) for row in apart]
    assert any(row.violation for row in here) == ("Wrong" in name)


def test_what_it_sends_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    (row,) = rows(f"{HERE}:sends_pickles", SOME[1:2], Limits(60.0))
    assert row.violation is not None
    assert "its process answers with another form" in row.violation.found
    assert not (tmp_path / "mark").exists()
    pickle.loads(pickle.dumps(Marks()))  # the plant is one
    assert (tmp_path / "mark").exists()


def test_a_factory_that_nobody_finds_is_bad_input():
    with pytest.raises(InputError, match=r"implementation=no\.such:thing: cannot be imported"):
        rows("no.such:thing", SOME, Limits())


LAW = SOME[0]
RIGHT = json.loads(answer_of(LawResult(LAW, 3, 2, 1, "why not", why="x=1: no", seconds=0.5)))
CASE = vars(Case())
FORGED = [
    [], 3, None, {}, {"late": 0}, *({**RIGHT, name: value} for name, value in (
        ("examples", -1), ("examples", 1.5), ("examples", True), ("exercised", 10**400), ("refused", "3"),
        ("seconds", "x"), ("seconds", []), ("broken", 3), ("broken", ["x"]), ("broken", ["x", {}, ""]),
        ("broken", ["x", {**CASE, "V": "3"}, ""]),
        ("broken", ["x", {**CASE, "patch_nums": [1, "2"]}, ""]), ("broken", ["x", {**CASE, "labels": [[0]]}, ""]),
        ("broken", ["x", {**CASE, "seed": True}, ""]), ("broken", ["x", [CASE], ""]),
    )),
]  # fmt: skip


@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: str(forged)[-40:])
def test_what_is_forged_is_told(forged: object):
    with pytest.raises(UnreadableError, match="answers with another form"):
        read_answer(json.dumps(forged).encode(), LAW, TOLD)


@pytest.mark.parametrize("line", [b"", b"x", b"[" * 10**5, b'{"late":' + b"9" * 5000 + b"}", b"\xff\xfe"])
def test_what_is_no_json_is_told(line: bytes):
    with pytest.raises(UnreadableError):
        read_answer(line, LAW, TOLD)


def test_what_is_sent_is_what_is_read():
    case = Case(patch_nums=(1, 3), cfg=float("inf"), labels=(1, 2), bonus=True)
    row = LawResult(
        LAW, 3, 2, 1, "why not", Violation(LAW, case, "rows differ", "'a:b'", (), "mask"), 0.5, "x=1: no", done=True
    )
    back = read_answer(answer_of(row), LAW, TOLD)
    assert isinstance(back, LawResult)
    assert seen(back) == seen(row)
    never = read_answer(answer_of(replace(row, not_done=True)), LAW, TOLD)
    assert isinstance(never, LawResult)
    assert (back.not_done, never.not_done) == (False, True)
    assert record_of(Case, json.loads(json.dumps(CASE))) == Case()
    assert read_answer(b'{"late": "no answer within 1 s", "hangs": true}', LAW, TOLD) == Died("no answer within 1 s")


def slow(models: ModelPair, settings: Settings) -> Any:
    """A right decoder without parts whose every image takes a while."""
    built = build_decoder(models, settings)

    def decode(request: Request, noise: SeededNoise) -> Trace:
        for _ in range(request.B):
            time.sleep(0.02)
        return built.decode(request, noise)

    return SimpleNamespace(contract=built.contract, policy=built.policy, decode=decode)


def hangs(models: ModelPair, settings: Settings) -> Any:
    return SimpleNamespace(contract="token-identical", decode=lambda request, noise: time.sleep(60.0))


def test_a_law_of_thousands_of_images_that_is_late_proves_nothing_and_one_decode_that_hangs_is_a_defect():
    (late,) = rows(f"{HERE}:slow", [BY_ID["acceptance.distribution"]], Limits(3.0))
    assert (late.violation, late.verdict) == (None, Verdict.INCONCLUSIVE)
    assert late.late == "took longer than 3 s: pass --timeout 6"
    assert str(late).endswith(late.late)
    (hung,) = rows(f"{HERE}:hangs", SOME[1:2], Limits(1.0))
    assert hung.violation is not None
    assert "no answer within 1 s (timeout)" in hung.violation.found


def test_a_late_law_makes_a_run_inconclusive_and_a_part_neither_right_nor_wrong():
    late = LawResult(BY_ID["acceptance.distribution"], late="took longer than 3 s: pass --timeout 6", done=True)
    tried = summed_up([late], 2)
    assert (tried.late, tried.broken, tried.held) == (("acceptance.distribution " + late.late,), (), 0)
    assert not tried.tested_the_law
    assert record_of(LawsTried, json.loads(json.dumps(tried.as_dict()))) == tried
    assert ", 1 too slow" in laws_line(tried)
    assert _row("draw", late).verdict is PartVerdict.UNPROVEN
    assert parts_verdict([_row("draw", late)]) is Verdict.INCONCLUSIVE
