"""What stands under the headline of a defect: how far a tensor is off, and the line."""

from __future__ import annotations

from pathlib import Path

from harness.judge import CodeLine
from harness.mutants._mutant import reporting
from harness.mutants.positions import OFFSET
from harness.protocol import Trace
from harness.report.html._run import run_page, seen_in
from tests.unit.report.reading import read
from tests.unit.report.sample_runs import page_of, run


def test_a_wrong_tensor_is_told_with_how_far_it_is_off(tmp_path: Path):
    def other_map(trace: Trace) -> None:
        trace.f_hat_BCPP = trace.f_hat_BCPP + 0.25

    run(tmp_path / "a.db", reporting(other_map))
    words = read(page_of(tmp_path / "a.db")).words
    seen = words[words.index("what was seen") :].partition("Next: ")[0]
    assert "|Δf_hat| 0.25 at most" in seen
    assert "Tokens and scores" not in words


def test_the_line_stands_above_and_its_stack_is_folded(tmp_path: Path):
    result = run(tmp_path / "a.db", OFFSET)
    stack = ("b.py:7, in pass: a", "a.py:1, in decode: b")
    result.line = CodeLine("b.py", 7, "pass", "x = rows + 1", "add", "x by 2", stack=stack)
    page = read(run_page(result, seen_in(tmp_path / "a.db", result)))
    assert "line – b.py:7, in pass: x = rows + 1 (add; wrong: x by 2)" in page.words
    assert "How that line is reached Its stack, the line first: b.py:7, in pass: a a.py:1" in page.words
    assert any(tag == "details" for tag, _ in page.elements)
