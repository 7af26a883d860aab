"""A decoder that looks odd is judged by its numbers: right ones pass in either process, wrong ones do not."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from harness import Request, Settings, Terms, Verdict
from harness.judge import TRACE_DTYPES, made_plain
from harness.judge._form import INTEGERS, REALS
from harness.protocol import Trace
from harness.report import show_verification
from harness.report.html import run_page
from harness.report.html._run import Seen
from harness.runs import RunFileOptions, recorded_result
from harness.runs._result import Verification
from harness.verification import Question, answer_question
from tests import odd
from tests.helpers import Layout, some, tiny

MODELS = tiny(Layout((1, 2, 3)))
BOTH = [True, False]


def judged(name: str, in_process: bool, file: Path | None = None, **terms: bool) -> Verification:
    models = copy.deepcopy(MODELS)  # some write into what they get
    how = Terms(in_process=in_process, **terms)
    question = Question(f"tests.odd:{name}", (Settings(2),), (Request((0, 1), 4),), how)
    return answer_question(models, question, store=RunFileOptions(file))


def cases(names: object) -> list[object]:
    """Return every name in this process, and some of them in one of their own every time."""
    there = some(3, [(False, name) for name in names])  # type: ignore[attr-defined]
    return [*((True, name) for name in names), *there]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("in_process", "name"), cases(odd.RIGHT))
def test_what_is_shown_otherwise_and_what_only_informs_fail_no_run(in_process: bool, name: str, tmp_path: Path):
    result = judged(name, in_process, tmp_path / "run.db")
    assert result.verdict is Verdict.IDENTICAL, result.first_divergence
    assert result.remarks == {}
    assert recorded_result(tmp_path / "run.db").verdict is Verdict.IDENTICAL


@pytest.mark.parametrize("in_process", BOTH)
@pytest.mark.parametrize("name", odd.REMARKED)
def test_what_is_left_behind_is_a_remark_and_a_defect_where_it_is_asked(in_process: bool, name: str, tmp_path: Path):
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    result = judged(name, in_process, tmp_path / "run.db")
    assert result.verdict is Verdict.IDENTICAL, result.first_divergence
    assert any(remark.startswith(odd.REMARKED[name]) for remark in result.remarks)
    assert json.loads(result.to_json())["remarks"] == recorded_result(tmp_path / "run.db").remarks == result.remarks
    strict = judged(name, in_process, strict=True)
    assert strict.verdict is Verdict.DEFECT
    assert strict.first_divergence is not None
    assert strict.first_divergence.component == "environment"
    assert (torch.get_default_dtype(), torch.get_num_threads()) == (dtype, threads)


@pytest.mark.parametrize(("in_process", "name"), cases(odd.WRONG))
def test_a_wrong_one_that_looks_as_odd_is_found(in_process: bool, name: str, tmp_path: Path):
    result = judged(name, in_process, tmp_path / "run.db")
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence is not None
    assert result.first_divergence.component == odd.WRONG[name]
    assert json.loads(result.to_json())["verdict"] == recorded_result(tmp_path / "run.db").verdict == "DEFECT"


def test_counts_that_nothing_confirms_are_shown_as_the_decoders_word(tmp_path: Path):
    result = judged("one_call", True, tmp_path / "run.db")
    assert result.verdict is Verdict.IDENTICAL
    for each in (result, recorded_result(tmp_path / "run.db")):
        assert json.loads(each.to_json())["counted_by"] == "decoder"
        assert "stated" in told(each)  # in the head of a column
        assert "covered (as the decoder says: nothing confirms its rounds and calls): " in told(each)
        page = run_page(each, Seen()).decode()
        assert "target calls, as the decoder says" in page
    own = answer_question(MODELS, Question("harness:build_decoder", (Settings(2),), (Request((0,), 4),)))
    assert json.loads(own.to_json())["counted_by"] == "harness"
    assert "stated" not in told(own)
    assert "as the decoder says" not in told(own)
    assert "as the decoder says" not in run_page(own, Seen()).decode()


def told(result: Verification) -> str:
    log = io.StringIO()
    show_verification(result, Console(file=log, width=200, soft_wrap=True), quiet=False, verbose=True)
    return log.getvalue()


def test_numbers_are_the_same_under_another_default_dtype():
    request = Request((0, 1), 4)
    expected = MODELS.noise(request).exponential(1, "token", "test")
    torch.set_default_dtype(torch.float64)
    try:
        actual = MODELS.noise(request).exponential(1, "token", "test")
    finally:
        torch.set_default_dtype(torch.float32)
    assert actual.dtype is torch.float32
    assert torch.equal(actual, expected)


def test_a_tensor_that_computes_for_itself_is_not_taken():
    class Computes(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func: object, types: object, args: object = (), kwargs: object = None) -> object:
            raise AssertionError("asked")

    tensor = torch.zeros(2).as_subclass(Computes)
    trace, remarks = made_plain(Trace(tensor, torch.zeros(2), torch.zeros(2)))
    assert trace.tokens_BL is tensor
    assert remarks == []


def test_one_table_says_which_dtypes_a_trace_may_have():
    assert all(dtype.is_floating_point for dtype in TRACE_DTYPES[REALS])
    assert not any(dtype.is_floating_point or dtype.is_complex for dtype in TRACE_DTYPES[INTEGERS])
    whole = {getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
    assert set(TRACE_DTYPES[INTEGERS]) == whole | {torch.bool}
