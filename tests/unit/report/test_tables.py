"""Every command's tables at 60 and 80 columns and piped: nothing is cut, nothing is too wide, in any encoding."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from harness.decoders._factory import OWN_DECODER, load_factory
from harness.golden._cases import CaseResult, FileResult
from harness.golden._record import Change
from harness.judge._verdict import Divergence, PartLaw, PartVerdict, Verdict
from harness.laws import Case, Violation
from harness.laws._conformance import LAWS
from harness.mutants._hunt import MUTANTS, Caught, Hunt
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.report import _goldens as goldens
from harness.report import _laws as laws
from harness.report import _measured as measured
from harness.report import _tables as tables
from harness.report import _terminal as terminal
from harness.report import samples
from harness.report._tables import Column, name_column, prose_column, table_lines
from harness.report._terminal import PIPE_WIDTH, plain_console
from harness.runs._result import Verification
from harness.speculative.tools._observer import Cost, Observer
from harness.wording import READABLE
from scripts.measured import read_speed
from tests.helpers import tiny, verify_here

MEASURED = Path(__file__).parents[3] / "docs" / "measured"
NOTE = "no room for: "
Show = Callable[[Console], None]


@cache
def run_of(factory: str) -> Verification:
    settings = [Settings(2), Settings(3), Settings(1, True)]
    return verify_here(tiny(), load_factory(factory), settings, [Request((0, 1), 0), Request((2,), 1)])


def verification(console: Console) -> None:
    terminal.show_verification(run_of(OWN_DECODER), console, quiet=False, verbose=True)


def defective(console: Console) -> None:
    terminal.show_verification(run_of("harness.mutants.positions:OFFSET"), console, quiet=False)


def checked(console: Console) -> None:
    wrong = Divergence("f_hat", "f_hat is off by 0.01, allowed 5e-07, |Δ| ≤ bound", 0, 1, 2, 3, 17)
    cases = [CaseResult(f"sequential-{k:04d}-cfg1.5-top_k900-more_smooth", Request((0,), 0)) for k in range(3)]
    for case in cases:
        case.draws = case.identical = 103_360_000_000
        case.delta_logits = case.delta_f_hat = case.delta_image = 1.2345e-07
    cases[2].defects.append(wrong)
    goldens.show_recordings([FileResult("recordings/of-a-name-without-end.safetensors", cases)], console, quiet=False)


def changed(console: Console) -> None:
    changes = [Change("two-phi-handoff-corrected-5", "values", 3, 1234, 0.1, 2e-3)]
    goldens.show_golden_changes("goldens", changes, console)


def hunted(console: Console) -> None:
    broken = Violation(LAWS[0], Case(), "rows differ")
    found = [
        Caught(MUTANTS[0], [broken], 1, 12.5, 20.0),
        Caught(MUTANTS[1]),
        Caught(MUTANTS[2], [broken], 3, 1.25, 3.0),
    ]
    laws.show_hunt(Hunt("first", 12, 0, "cpu", "float32", found), console, quiet=False, verbose=True)


def parted(console: Console) -> None:
    wrong = "rows 5 to 13 sit at positions 1 to 9 and not where the sequential sampler has them, by ≥ 3.64"
    said = ((PartVerdict.HELD, ""), (PartVerdict.BROKEN, wrong), (PartVerdict.CRASHED, "IndexError: 14"))
    rows = [
        PartLaw("sdvar_autoregressive_infer_cfg_parallel_v1", f"masks.law{k}", "…", *of) for k, of in enumerate(said)
    ]
    terminal.show_parts(rows, terminal.parts_verdict(rows), console, quiet=False, verbose=True)


def timed(console: Console) -> None:
    for path in sorted(MEASURED.glob("speed-*.json")):
        measured.show_speed(read_speed(path), "cuda", console)


def costs(console: Console) -> None:
    observer = Observer()
    observer.costs.update({"update_state_with_accepted_tokens": Cost(12, 1.5, 2**30), "draw": Cost(1, 0.001, 1024)})
    samples.show_component_cost(observer, console)


SHOWN: dict[str, Show] = {
    "verify": verification, "verify, defect": defective, "golden check": checked, "golden diff": changed,
    "mutants": hunted, "parts": parted, "bench": timed, "sample --profile": costs,
}  # fmt: skip


@dataclass
class Printed:
    """What went to a terminal, and the tables that were in it."""

    lines: list[str]
    tables: list[tuple[list[Column], list[list[str]], list[str]]] = field(default_factory=list)


def printed(show: Show, width: int, encoding: str, monkeypatch: pytest.MonkeyPatch) -> Printed:
    kept: list[tuple[list[Column], list[list[str]], list[str]]] = []

    def spied(title: str, columns: list[Column], rows: list[list[str]], width: int) -> list[str]:
        kept.append((columns, rows, table_lines(title, columns, rows, width)))
        return kept[-1][2]

    monkeypatch.setattr(tables, "table_lines", spied)
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding, errors=READABLE)  # as the command line opens it
    show(Console(file=file, width=width, markup=False, emoji=False, highlight=False))
    file.flush()
    return Printed(raw.getvalue().decode(encoding).splitlines(), kept)


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("width", [60, 80, PIPE_WIDTH])
@pytest.mark.parametrize("name", SHOWN)
def test_every_table_fits_and_nothing_is_cut(name: str, width: int, encoding: str, monkeypatch: pytest.MonkeyPatch):
    out = printed(SHOWN[name], width, encoding, monkeypatch)
    assert out.tables
    assert [line for line in out.lines if cell_len(line) > width and not line.startswith("next: ")] == []
    assert not any("…" in line for line in out.lines if name != "parts")
    for columns, rows, lines in out.tables:
        text = flat(" ".join(lines))
        note = text.partition(NOTE)[2]
        assert not (note and width == PIPE_WIDTH)
        for k, column in enumerate(columns):
            gone = flat(column.head) in note
            assert not (gone and not column.spare), column
            words = [flat(row[k]) for row in rows if not (column.prose and row[k] in ("", "-"))]
            assert gone or [word for word in words if word and not whole(word, text)] == [], column


def whole(cell: str, text: str) -> bool:
    """Whether a cell stands in a text, neither after nor before other letters; prose may be broken by a column."""
    return all(re.search(rf"(?<!\S){re.escape(word)}(?!\S)", text) for word in cell.split())


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", ">="), ("utf-8", "≥")])
def test_letters_that_an_encoding_lacks_are_spelled_before_widths_are_measured(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
):
    assert any(shown in flat(line) for line in printed(parted, 80, encoding, monkeypatch).lines)


def test_what_passed_shares_a_row_and_what_failed_has_its_own(monkeypatch: pytest.MonkeyPatch):
    result = run_of(OWN_DECODER)

    def shown(console: Console, verbose: bool = False) -> None:
        terminal.show_verification(result, console, quiet=False, verbose=verbose)

    rows = printed(shown, 80, "utf-8", monkeypatch).tables[0][1]
    assert [row[0] for row in rows] == ["3 settings IDENTICAL"]
    every = printed(partial(shown, verbose=True), 80, "utf-8", monkeypatch).tables[0][1]
    assert len(every) == 3
    assert rows[0][-1] == every[0][-1]  # one reference for all of them: its time is not counted three times
    assert int(rows[0][2]) == sum(int(row[2]) for row in every) > 0
    assert len(printed(defective, 80, "utf-8", monkeypatch).tables[0][1]) >= 2
    shown = [row[0] for row in printed(checked, 80, "utf-8", monkeypatch).tables[0][1]]
    assert shown == ["sequential-0002-cfg1.5-top_k900-more_smooth", "2 cases that hold"]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_no_color_is_respected(no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", Screen())
    verification(plain_console())
    said = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert bool(re.search(r"\x1b\[(?:\d+;)*[349]\d", said)) is coloured
    assert max(cell_len(line) for line in re.sub(r"\x1b\[[\d;]*m", "", said).splitlines()) <= 60


def test_a_pipe_is_wide_whatever_the_terminal_is_and_has_no_colours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    verification(plain_console())
    said = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in said
    assert NOTE not in said


def test_parts_that_are_not_there_share_a_line_and_a_wrong_part_is_never_called_right(capsys):
    held, broken, absent = PartVerdict.HELD, PartVerdict.BROKEN, PartVerdict.ABSENT
    said = [("guide", held, ""), ("draw", held, ""), ("draw", broken, "wrong"), ("guide", PartVerdict.UNPROVEN, "late")]
    said += [
        ("split", held, ""),
        ("accept", absent, "no parts"),
        ("new_cache", absent, "no parts"),
        ("residual", absent, "not composed"),
    ]
    rows = [PartLaw(part, f"a.law{k}", "…", verdict, why) for k, (part, verdict, why) in enumerate(said)]
    assert terminal.parts_verdict(rows) is Verdict.DEFECT
    terminal.show_parts(rows, Verdict.DEFECT, plain_console(), quiet=False)
    out = capsys.readouterr().out
    assert "held: 3 laws, all that were asked of split\n" in out
    assert "not there: 2 laws of parts (no parts)\n" in out
    assert out.count("no parts") == 1
    assert "not composed" in out
    assert "INCONCLUSIVE  late" in out
    assert "DEFECT 8 laws of parts: 3 held, 1 broken, 1 inconclusive, 3 not there; wrong: draw\n" in out
    terminal.show_parts(rows, Verdict.DEFECT, plain_console(), quiet=False, verbose=True)
    assert capsys.readouterr().out.count("no parts") == 2
    assert terminal.parts_verdict(rows[:1] + rows[3:4]) is Verdict.INCONCLUSIVE


TINY = (name_column("name"), Column("identical"), Column("time (s)", spare=1), prose_column("why"))
ROW = ("a-long-name-of-a-case", "123456789", "1.5", "words of prose that are broken between words alone")


def test_columns_are_dropped_by_importance_and_named_and_then_stacked():
    assert NOTE not in "\n".join(table_lines("", TINY, [ROW], 120))
    narrow = table_lines("", TINY, [ROW], 13)
    assert "time (s)" in flat(" ".join(narrow)).partition(NOTE)[2]
    assert any("123456789" in line for line in narrow)
    stacked = table_lines("", TINY, [ROW], 8)
    assert "identical 123456789" in flat(" ".join(stacked))
    assert "a-long-name-of-a-case" in stacked
